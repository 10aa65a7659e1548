"""Algorithm 1 of the paper: sample groups, verify, turn rewards into labels, update."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from realrl.errors import TrainingError
from realrl.seeding import derive_seed
from realrl.system.memory import return_freed_memory
from realrl.training.batching import make_batch
from realrl.training.check_sampler import check_sampler
from realrl.training.clock import Clock
from realrl.training.evaluation import evaluate_held_out
from realrl.training.optim import set_learning_rate
from realrl.training.progress import Progress
from realrl.training.recorder import Recorder
from realrl.training.rollouts import Collected, Collector
from realrl.training.setup import Run
from realrl.training.stop import StopRequest
from realrl.training.update import Update, update_policy
from realrl.training.verdicts import fault_of


def train_loop(run: Run, collector: Collector, recorder: Recorder, progress: Progress, stop: StopRequest) -> None:
    """Train from the round that `progress` has come to until the recipe's last; `progress` goes along.

    A `stop` request ends it after the round in progress, which is saved; an evaluation that is due then is left to the resumed
    run. Raises TrainingError after too many updates in a row that were not finite, for verdicts that nothing can be learned
    from, and at an alarm of `train.stop_on`.
    """
    config = run.config
    while progress.rounds < config.train.steps:
        number, clock = progress.rounds, Clock()
        torch.manual_seed(derive_seed(config.run.seed, "torch", number))

        # The old policy answers each prompt with a group of rollouts, and the verifier grades them.
        recorder.phase("sampling")
        collected = collector.collect(number)
        return_freed_memory()
        clock.lap("collect")
        _check_verdicts(run, recorder, collected, number + 1)

        # The rewards become labels; each mini-batch of whole groups makes one update.
        recorder.phase("updating")
        batch = make_batch(collected.prompts, collected.rollouts, collected.verdicts, run.device)
        budget = run.micro_batch_tokens
        learning_rate = set_learning_rate(run.optimizer, config, number)
        updates = update_policy(run, batch, progress, on_policy=collected.on_policy)
        clock.lap("update")
        if number == 0 and collected.on_policy:
            check_sampler(config, batch, updates[0])

        # The updated policy is the old policy of the next round.
        collector.update_sampler()
        clock.lap("sync")
        progress.rounds += 1
        recorder.round(progress.rounds, batch, collected, updates, learning_rate, clock.seconds)
        _check_updates(run, recorder, progress, updates, budget)
        if _evaluate_and_save(run, recorder, progress, stop):
            return


def _check_verdicts(run: Run, recorder: Recorder, collected: Collected, number: int) -> None:
    """TrainingError for verdicts of round `number` that nothing can be learned from."""
    if fault := fault_of(collected.verdicts, run.config):
        recorder.alarm(number, fault)
        raise TrainingError(f"step {number}: {fault}; mend it, then --resume")


def _check_updates(run: Run, recorder: Recorder, progress: Progress, updates: Sequence[Update], budget: int | None) -> None:
    """Report what went wrong in a round's updates; `budget` is the micro-batch budget before them.

    Raises TrainingError after too many updates in a row that were not finite.
    """
    if run.micro_batch_tokens != budget:
        recorder.alarm(
            progress.rounds,
            f"out of memory: micro-batches have at most {run.micro_batch_tokens} tokens from here on; the step was repeated "
            "exactly. Set train.micro_batch_tokens to it",
            level="WARNING",
        )
    recorder.bad_updates(progress.rounds, updates)
    if progress.bad_in_a_row >= run.config.train.max_nonfinite_steps:
        raise TrainingError(
            f"{progress.bad_in_a_row} updates in a row were not finite (step {progress.rounds}); the last good checkpoint is "
            f"{recorder.last_checkpoint or 'none yet'}. Lower optim.lr or optim.max_grad_norm, then --resume"
        )


def _evaluate_and_save(run: Run, recorder: Recorder, progress: Progress, stop: StopRequest) -> bool:
    """What is due after a round: an evaluation, an alarm that stops the run, a checkpoint. Whether the run ends here."""
    config, number = run.config, progress.rounds
    last = number == config.train.steps
    progress.evaluation_due = last or bool(config.eval.every and number % config.eval.every == 0)
    if progress.evaluation_due and not stop.agreed(run.world, run.device):
        evaluate_held_out(run, recorder, progress)
    if config.train.stop_on and (rung := run.world.of_main(recorder.stopping)):
        kept = recorder.last_checkpoint or "none yet"
        raise TrainingError(f"stopped after step {number} by train.stop_on (newest checkpoint: {kept}): {rung}")
    stopping = stop.agreed(run.world, run.device)
    if last or stopping or (config.checkpoint.every and number % config.checkpoint.every == 0):
        recorder.checkpoint(run, progress)
    return last or stopping
