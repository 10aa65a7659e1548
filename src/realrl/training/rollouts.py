"""The first half of a round: each rank samples its share of the prompts, and grades finished responses at the same time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from realrl.rewards import Grading
from realrl.seeding import derive_seed
from realrl.training.setup import Run, sampling_params
from realrl.types import Prompt, Rollout, Verdict


@dataclass(frozen=True, slots=True)
class Collected:
    """The graded rollouts of a round from all ranks, ordered by prompt, then by sample.

    `updates_behind`: rounds between the weights that sampled and the weights that are trained. `sample_s` and `grade_s`:
    seconds of this rank's sampling, and of the grading that went on after it.
    """

    prompts: list[Prompt]
    rollouts: list[Rollout]
    verdicts: list[Verdict]
    updates_behind: int
    sample_s: float
    grade_s: float

    @property
    def on_policy(self) -> bool:
        """Whether the weights that are trained also sampled."""
        return self.updates_behind == 0


class Collector:
    """Samples and grades round by round; with `sampling.steps_ahead` it samples the next round while the policy is updated.

    A context manager, which waits at its end for what is sampled ahead.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, "sampler") if run.config.sampling.steps_ahead else None
        self._ahead: tuple[list[Prompt], Future[Any]] | None = None

    def collect(self, number: int) -> Collected:
        """The rollouts of round `number` (from 0), which may have been sampled ahead. Every rank takes part."""
        ahead, self._ahead = self._ahead, None
        prompts = ahead[0] if ahead else self._prompts(number)
        own, sample_s, grade_s = ahead[1].result() if ahead else self._sample(number, prompts)
        if self._thread and number + 1 < self._run.config.train.steps:
            upcoming = self._prompts(number + 1)
            self._ahead = upcoming, self._thread.submit(self._sample, number + 1, upcoming)
        graded = self._run.world.merge(own)
        rollouts = [replace(rollout, prompt_index=index) for index, group in enumerate(graded) for rollout, _ in group]
        verdicts = [verdict for group in graded for _, verdict in group]
        return Collected(prompts, rollouts, verdicts, int(ahead is not None), sample_s, grade_s)

    def update_sampler(self) -> None:
        """Give the sampler the trained weights, after it has finished what it samples ahead."""
        if self._ahead:
            self._ahead[1].exception()
        self._run.sampler.update_weights(self._run.model)

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *error: object) -> None:
        # What is still being sampled is finished and thrown away.
        if self._thread:
            self._thread.shutdown()

    def _prompts(self, number: int) -> list[Prompt]:
        return self._run.prompts.step(number, self._run.config.train.prompts_per_step)

    def _sample(self, number: int, prompts: Sequence[Prompt]) -> tuple[list[list[tuple[Rollout, Verdict]]], float, float]:
        """This rank's graded groups of a round, and the seconds. The draws of a rollout do not depend on its rank."""
        run, started = self._run, time.perf_counter()
        size = run.config.sampling.group_size
        mine: Sequence[tuple[int, Prompt]] = run.world.share(list(enumerate(prompts)))
        seeds = [derive_seed(run.config.run.seed, "sampling", number, index, k) for index, _ in mine for k in range(size)]
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
