"""The first half of a step: each rank samples its share of the prompts and grades responses while others are still sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from realrl.rewards import Grading
from realrl.sampling import Sampler, SamplingParams
from realrl.seeding import derive_seed
from realrl.train.distributed import World
from realrl.train.setup import Run, sampling_params
from realrl.types import Prompt, Rollout, Verdict


@dataclass(frozen=True, slots=True)
class Collected:
    """The graded rollouts of a step, all ranks', ordered by prompt, then by sample.

    `updates_behind`: sampling rounds between the weights that sampled and those that are trained; 0 is on-policy.
    `sample_s` and `grade_s`: seconds of this rank's sampling, and what grading took after it.
    """

    prompts: list[Prompt]
    rollouts: list[Rollout]
    verdicts: list[Verdict]
    updates_behind: int
    sample_s: float
    grade_s: float


class SharedSampler:
    """A sampler whose prompts are shared out over the ranks; every rank gets all rollouts."""

    def __init__(self, sampler: Sampler, world: World) -> None:
        self._sampler = sampler
        self._world = world

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        params: SamplingParams,
        seeds: Sequence[int],
        on_finished: Callable[[int, Rollout], None] | None = None,
    ) -> list[Rollout]:
        """As `Sampler.sample`; `on_finished` is told of this rank's rollouts alone, by their index among those."""
        mine = self._world.share(range(len(prompts)))
        rollouts = self._sampler.sample(
            [prompts[index] for index in mine],
            group_size=group_size,
            params=params,
            seeds=[seeds[index * group_size + k] for index in mine for k in range(group_size)],
            on_finished=on_finished,
        )
        groups = self._world.merge([rollouts[first : first + group_size] for first in range(0, len(rollouts), group_size)])
        return [replace(rollout, prompt_index=index) for index, group in enumerate(groups) for rollout in group]

    def update_weights(self, model: PreTrainedModel) -> None:
        self._sampler.update_weights(model)


class Collector:
    """Samples and grades step by step; with `sampling.steps_ahead` the next step's rollouts while the policy is updated.

    A context manager, within which a step may be sampled ahead.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, "sampler") if run.config.sampling.steps_ahead else None
        self._ahead: tuple[list[Prompt], Future[Any]] | None = None

    def collect(self, step: int) -> Collected:
        """The rollouts of step `step` (from 0), those sampled ahead where there are any. Every rank takes part."""
        ahead, self._ahead = self._ahead, None
        prompts = ahead[0] if ahead else self._prompts(step)
        own, sample_s, grade_s = ahead[1].result() if ahead else self._sample(step, prompts)
        if self._thread and step + 1 < self._run.config.train.steps:
            upcoming = self._prompts(step + 1)
            self._ahead = upcoming, self._thread.submit(self._sample, step + 1, upcoming)
        graded = self._run.world.merge(own)
        rollouts = [replace(rollout, prompt_index=index) for index, group in enumerate(graded) for rollout, _ in group]
        verdicts = [verdict for group in graded for _, verdict in group]
        return Collected(prompts, rollouts, verdicts, int(ahead is not None), sample_s, grade_s)

    def update_sampler(self) -> None:
        """Give the sampler the trained weights, once it has finished what it samples ahead."""
        if self._ahead:
            self._ahead[1].exception()
        self._run.sampler.update_weights(self._run.model)

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *error: object) -> None:
        # What is being sampled is waited for and thrown away.
        if self._thread:
            self._thread.shutdown()

    def _prompts(self, step: int) -> list[Prompt]:
        return self._run.prompts.step(step, self._run.config.train.prompts_per_step)

    def _sample(self, step: int, prompts: Sequence[Prompt]) -> tuple[list[list[tuple[Rollout, Verdict]]], float, float]:
        """This rank's groups of a step, graded, and the seconds. Draws depend on the rollout alone, not on the rank."""
        run, started = self._run, time.perf_counter()
        size = run.config.sampling.group_size
        mine: Sequence[tuple[int, Prompt]] = run.world.share(list(enumerate(prompts)))
        seeds = [derive_seed(run.config.run.seed, "sampling", step, index, k) for index, _ in mine for k in range(size)]
        with Grading(run.grader, len(seeds)) as grading:
            rollouts = run.sampler.sample(
                [prompt.token_ids for _, prompt in mine],
                group_size=size,
                params=sampling_params(run.config.sampling),
                seeds=seeds,
                on_finished=lambda row, rollout: grading.submit(row, rollout.text, mine[row // size][1].problem.golds),
            )
            sampled = time.perf_counter()
            verdicts = grading.verdicts()
        graded = list(zip(rollouts, verdicts, strict=True))
        groups = [graded[first : first + size] for first in range(0, len(graded), size)]
        return groups, sampled - started, time.perf_counter() - sampled
