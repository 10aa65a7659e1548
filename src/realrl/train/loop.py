"""Algorithm 1 of the paper: sample groups, verify, turn rewards into labels, update."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from functools import partial
from typing import Any

import torch

from realrl.config import Config
from realrl.errors import TrainingError
from realrl.models.precision import sampling_dtype, training_dtype
from realrl.sampling import whole
from realrl.seeding import derive_seed, generator
from realrl.system.memory import return_freed_memory
from realrl.train.batching import make_batch, mini_batches, select_rows
from realrl.train.debug import BadUpdate, gradients_not_finite, not_finite
from realrl.train.distributed import sum_gradients
from realrl.train.fitting import fitting
from realrl.train.recorder import Recorder
from realrl.train.rollouts import Collector
from realrl.train.setup import Run
from realrl.train.step import GradientStep, StepReport, StepSettings, groups_of, settings_of
from realrl.train.verdicts import fault_of
from realrl.types import Batch

# Nats a token. In float32 a right sampler is below 1e-5; a wrong position or a missing layer is above 1.
SAMPLER_GAP = 0.1


def train_loop(run: Run, collector: Collector, recorder: Recorder, stop: StopRequest, start: int = 0) -> int:
    """Train from step `start` (counted from 0) to the recipe's last; returns the number of finished steps.

    A `stop` request ends it after the step in progress, which is saved; an evaluation that is due then is left to the resumed
    run. Raises TrainingError after too many non-finite updates in a row, for verdicts that nothing can be learned from, and at
    an alarm of `train.stop_on`.
    """
    config, seed = run.config, run.config.run.seed
    bad_in_a_row = recorder.bad_in_a_row
    for step in range(start, config.train.steps):
        torch.manual_seed(derive_seed(seed, "torch", step))
        clock = Clock()
        recorder.phase("sampling")
        collected = collector.collect(step)
        return_freed_memory()
        clock.lap("collect")
        if fault := fault_of(collected.verdicts, config):
            recorder.alarm(step + 1, f"ALARM: {fault}")
            raise TrainingError(f"step {step + 1}: {fault}; mend it, then --resume")
        recorder.phase("updating")
        batch = make_batch(collected.prompts, collected.rollouts, collected.verdicts, run.device)
        learning_rate = set_learning_rate(run, step)
        budget = run.micro_batch_tokens
        updates, bad_in_a_row = update_policy(run, batch, step, bad_in_a_row, on_policy=collected.updates_behind == 0)
        clock.lap("update")
        if step == 0 and collected.updates_behind == 0:
            check_sampler(config, select_rows(batch, updates[0].rows), updates[0].report)
        collector.update_sampler()
        clock.lap("sync")
        recorder.step(step + 1, batch, collected, updates, learning_rate, clock.seconds)
        if run.micro_batch_tokens != budget:
            text = (
                f"out of memory: micro-batches have at most {run.micro_batch_tokens} tokens from here on; the step was repeated"
            )
            recorder.alarm(step + 1, f"WARNING: {text} exactly. Set train.micro_batch_tokens to it")
        recorder.bad_updates(step + 1, updates)
        if bad_in_a_row >= config.train.max_nonfinite_steps:
            raise TrainingError(
                f"{bad_in_a_row} updates in a row were not finite (step {step + 1}); the last good checkpoint is "
                f"{recorder.last_checkpoint or 'none yet'}. Lower optim.lr or optim.max_grad_norm, then --resume"
            )
        recorder.bad_in_a_row = bad_in_a_row
        last = step + 1 == config.train.steps
        recorder.evaluation_due = last or bool(config.eval.every and (step + 1) % config.eval.every == 0)
        if recorder.evaluation_due and not stop.agreed(run):
            recorder.evaluate(run, step + 1)
        if config.train.stop_on and (rung := run.world.of_main(recorder.stopping)):
            kept = recorder.last_checkpoint or "none yet"
            raise TrainingError(f"stopped after step {step + 1} by train.stop_on (newest checkpoint: {kept}): {rung}")
        stopping = stop.agreed(run)
        if last or stopping or (config.checkpoint.every and (step + 1) % config.checkpoint.every == 0):
            recorder.checkpoint(run, step + 1)
        if last or stopping:
            return step + 1
    return start


class Update:
    """One optimizer step: its rows of the batch, what the gradient pass reported, and the gradient norm; `bad` if skipped."""

    def __init__(
        self,
        rows: torch.Tensor,
        report: StepReport,
        grad_norm: float,
        work: tuple[int, int],
        budget: int,
        bad: BadUpdate | None = None,
    ) -> None:
        self.rows = rows
        self.report = report
        self.grad_norm = grad_norm
        self.forwards, self.backwards = work
        self.budget = budget
        self.bad = bad

    @property
    def finite(self) -> bool:
        """Whether the update was made."""
        return self.bad is None


def update_policy(run: Run, batch: Batch, step: int, bad_in_a_row: int, *, on_policy: bool = True) -> tuple[list[Update], int]:
    """The optimizer steps of one sampling round, over mini-batches of whole groups in random order.

    Old log-probabilities are computed only for mini-batches after the first, and before the first update: until then the
    policy is the one that sampled. Rollouts of earlier weights (not `on_policy`) have the sampler's own for all of them.
    Non-finite updates are skipped; returns how many came in a row, too.
    """
    config, seed = run.config, run.config.run.seed
    settings = settings_of(config, step)
    gradient = GradientStep(run.model, run.objective, settings, run.world)
    minis = mini_batches(batch, config.train.mini_batch_prompts, generator(seed, "mini_batches", step))
    active = run.objective.carries_gradient(groups_of(batch))
    later = active.clone()
    later[minis[0]] = False
    old_NT = batch.logprobs_sampler
    if on_policy:
        old_NT = fitting(run, gradient, batch, partial(gradient.token_logprobs, batch, later))
    ref_NT = reference_logprobs(run, batch, active, settings)
    updates: list[Update] = []
    fresh = on_policy
    before = 0, 0
    for rows in minis:
        mini = select_rows(batch, rows)
        width = mini.response_ids.shape[1]
        run.optimizer.zero_grad(set_to_none=True)
        old, ref = None if fresh else old_NT[rows, :width], None if ref_NT is None else ref_NT[rows, :width]
        report = fitting(run, gradient, mini, partial(gradient.backward, mini, old, ref))
        work = gradient.forwards - before[0], gradient.backwards - before[1]
        before = gradient.forwards, gradient.backwards
        grad_norm = 0.0
        bad = None
        if report.computed_N.any():
            sum_gradients(run.model, run.world)
            total = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters() if p.grad is not None])
            grad_norm = float(whole(total))
            finite = math.isfinite(grad_norm) and math.isfinite(report.loss)
            if finite:
                torch.nn.utils.clip_grads_with_norm_(run.model.parameters(), config.optim.max_grad_norm, total)
                run.optimizer.step()
                fresh = False
            else:
                bad = BadUpdate(
                    batch=mini,
                    old_NT=old,
                    ref_NT=ref,
                    policy_NT=report.logprobs_NT,
                    loss=report.loss,
                    grad_norm=grad_norm,
                    gradients=gradients_not_finite(run.model),
                    weights=not_finite(run.model.named_parameters()),
                )
            bad_in_a_row = 0 if finite else bad_in_a_row + 1
        updates.append(Update(rows, report, grad_norm, work, gradient.settings.budget, bad))
    run.optimizer.zero_grad(set_to_none=True)
    return updates, bad_in_a_row


def check_sampler(config: Config, batch: Batch, report: StepReport) -> None:
    """TrainingError where the sampler and the model in training, both in float32 and of the same weights, disagree."""
    if not training_dtype(config) == sampling_dtype(config) == "float32":
        return
    counted_NT = report.computed_N[:, None] & batch.loss_mask
    gap = float((report.logprobs_NT - batch.logprobs_sampler)[counted_NT].abs().mean()) if bool(counted_NT.any()) else 0.0
    if gap > SAMPLER_GAP:
        raise TrainingError(
            f"the sampler and the model in training differ by {gap:.2g} nats a token on the first rollouts, both in float32 "
            "and of the same weights, so that every gradient would be wrong. Causes are an architecture whose cache, padding "
            "or row length changes its log-probabilities, noise in training mode (dropout, router jitter), or a sampling "
            "engine that reads other weights or another configuration; realrl check-model tries the model by itself"
        )


def reference_logprobs(run: Run, batch: Batch, rows_N: torch.Tensor, settings: StepSettings) -> torch.Tensor | None:
    """Token log-probabilities of the marked rows under the frozen initial model, where the objective reads them."""
    if run.reference is None:
        return None
    with run.reference as model:
        step = GradientStep(model, run.objective, settings, run.world)
        return fitting(run, step, batch, partial(step.token_logprobs, batch, rows_N))


def set_learning_rate(run: Run, step: int) -> float:
    """Warm-up, then constant, linear to 0 or cosine to 0, as a function of the sampling round."""
    rate = run.config.optim.lr * run.config.optim.factor(step, run.config.train.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    return rate


class Clock:
    """Seconds of the named parts of a step."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


class StopRequest:
    """Ctrl-C, or SIGTERM, asks to stop after the step in progress; the next one ends the process where it stands.

    `signum` is the signal that came, 0 before. A context manager.
    """

    def __init__(self) -> None:
        self.signum = 0

    def agreed(self, run: Run) -> bool:
        """Whether any rank was asked to stop; every rank takes part."""
        return bool(run.world.largest(self.signum, run.device))

    def __enter__(self) -> StopRequest:
        # Only the main thread may handle signals; elsewhere they are its owner's business.
        self._previous: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._handle) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, signum: int, frame: object) -> None:
        self.signum = signum
        # The kernel's own handling needs no Python: it ends a process that waits in a library, too, and what is on disk is as
        # after kill -9, which a run survives.
        for one in self._previous:
            signal.signal(one, signal.SIG_DFL)
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        text = f"{name}: finishing this step, then saving a checkpoint; again to stop at once, without saving"
        # Not through the display, which the main thread may be in the middle of; a progress bar hides the cursor.
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""
        with contextlib.suppress(OSError):
            os.write(2, f"{show_cursor}{text}\n".encode())

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
