"""Held-out evaluations during training."""

from __future__ import annotations

from realrl.eval.runner import graded_rows, summarise
from realrl.seeding import derive_seed
from realrl.system.memory import return_freed_memory
from realrl.training.progress import Progress
from realrl.training.recorder import Recorder
from realrl.training.setup import Run, sampling_params


def evaluate_held_out(run: Run, recorder: Recorder, progress: Progress) -> None:
    """Pass@1 on each held-out set, sampled and greedy, with the same draws at every call.

    Every rank takes part: it samples and grades its share of the problems.
    """
    config = run.config
    progress.evaluation_due = False
    for name, prompts in run.held_out.items():
        recorder.phase(f"evaluating {name}")
        for mode in ("sampled", "greedy") if config.eval.greedy else ("sampled",):
            samples = 1 if mode == "greedy" else config.eval.samples
            rows = graded_rows(
                run.sampler,
                run.world.share(list(enumerate(prompts))),
                run.grader,
                samples=samples,
                params=sampling_params(config.sampling, greedy=mode == "greedy", top_p=config.eval.top_p),
                seed=derive_seed(config.run.seed, "eval", name),
            )
            problems = run.world.merge([rows[first : first + samples] for first in range(0, len(rows), samples)])
            return_freed_memory()
            if run.world.is_main:
                result = summarise([row for problem in problems for row in problem], samples)
                recorder.evaluation(progress.rounds, name, mode, result)
