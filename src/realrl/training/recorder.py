"""The recorder of a run: metrics, saved rollouts, alarms, checkpoints, and lines on the terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from realrl.config import Config, LogSection
from realrl.errors import TrainingError
from realrl.eval.runner import EvalResult
from realrl.rundir.alarms import Alarm, Alarms, Level, alarm_line, append_alarm
from realrl.rundir.metrics import MetricsFile, RecordKind
from realrl.rundir.paths import RunPaths
from realrl.rundir.rollouts import write_rollouts
from realrl.system.terminal import printable
from realrl.training.checkpoint import save_checkpoint
from realrl.training.debug import save_bad_update
from realrl.training.display import Display
from realrl.training.distributed import World
from realrl.training.metrics import reward_metrics, rollout_rows, token_columns, update_metrics
from realrl.training.progress import Progress
from realrl.training.rollouts import Collected
from realrl.training.setup import Run
from realrl.training.trackers import Trackers
from realrl.training.update import Update
from realrl.training.verdicts import failures_of
from realrl.types import Batch


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Turn a write error inside the block into a TrainingError that gives the path, the reason and the remedy."""
    try:
        yield
    except Exception as error:
        # Libraries in Rust (safetensors, tokenizers) put the system's error into the text of their own exceptions.
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TrainingError(
            f"{path} cannot be written: {reason}; free space or make the folder writable, then {remedy}"
        ) from error


class Recorder:
    """Owns the run folder: everything that a run writes or prints passes here.

    Every rank calls the same methods; only rank 0 writes and prints, and only it has a display and files. `stopping` is the
    text of the newest alarm that `train.stop_on` names.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        display: Display | None,
        metrics: MetricsFile | None,
        log: LogSection,
    ) -> None:
        self.last_checkpoint: Path | None = None
        self.stopping = ""
        self._paths = RunPaths(folder)
        self._world = world
        self._known_ids = 0
        self._display = display
        self._metrics = metrics
        self._trackers: Trackers | None = None
        self._newest_step = 0
        self._log = log
        self._stop_on: Collection[str] = ()
        self._alarms = Alarms()
        for record in metrics.kept if metrics else ():
            self._alarms.check(record)

    def begin(self, config: Config, checkpoint: Path | None, step: int, known_ids: int) -> None:
        """Start the trackers; the run goes on after `step` rounds from `checkpoint`, or begins without one.

        `known_ids` counts the token ids that the tokenizer knows.
        """
        self._known_ids = known_ids
        self.last_checkpoint = checkpoint
        self._newest_step = step
        self._stop_on = config.train.stop_on
        if self._world.is_main:
            self._trackers = Trackers(
                self._log,
                self._paths.folder,
                config,
                lambda text: self.alarm(self._newest_step, text, level="WARNING"),
            )

    def phase(self, name: str) -> None:
        if self._display:
            self._display.phase(name)

    def line(self, text: str) -> None:
        if self._display:
            self._display.line(printable(text))

    def alarm(self, step: int, text: str, level: Level = "ALARM") -> None:
        """Print an alarm and add it to alarms.txt."""
        text = printable(text)
        self.line(alarm_line(step, text, level))
        if self._world.is_main:
            with self._writing(self._paths.alarms) as path:
                append_alarm(path, step, text, level)

    def round(
        self,
        step: int,
        batch: Batch,
        collected: Collected,
        updates: Sequence[Update],
        learning_rate: float,
        seconds: dict[str, float],
    ) -> None:
        """Write the metrics and rollouts of finished round `step`, show them, and ring the alarms that they cause."""
        metrics = {
            **reward_metrics(batch, collected.rollouts, collected.verdicts),
            "response/unknown_token_share": float((batch.response_ids >= self._known_ids).any(dim=1).float().mean()),
            **update_metrics(batch, updates),
            "sampler/updates_behind": float(collected.updates_behind),
            "optim/lr": learning_rate,
            "time/sample_s": collected.sample_s,
            "time/grade_s": collected.grade_s,
            **{f"time/{name}_s": value for name, value in seconds.items()},
        }
        elapsed = sum(seconds.values())
        metrics["time/step_s"] = elapsed
        metrics["throughput/tokens_per_s"] = float(batch.loss_mask.sum()) / elapsed
        self._write(step, "round", metrics)
        if self._display:
            self._display.round(step, metrics)
        self._ring(step, self._alarms.check({"kind": "round", **metrics}, failures_of(collected.verdicts)))
        if self._log.rollouts and self._world.is_main:
            rows = rollout_rows(step, batch, collected.rollouts, collected.verdicts, updates)
            if self._log.tokens:
                rows = [row | tokens for row, tokens in zip(rows, token_columns(batch, updates), strict=True)]
            with self._writing(self._paths.rollouts_of(step)) as path:
                write_rollouts(path, rows)

    def bad_updates(self, step: int, updates: Sequence[Update]) -> None:
        """Keep the mini-batches of skipped updates, for the first few of a run."""
        for index, update in enumerate(updates):
            if update.bad and self._world.is_main:
                with self._writing(self._paths.bad_update_of(step, index)) as path:
                    kept = save_bad_update(path, step, index, update.bad)
                if kept:
                    self.line(f"step {step}: the mini-batch is kept; look at it with: realrl debug-batch {kept}")

    def evaluation(self, step: int, name: str, mode: str, result: EvalResult) -> None:
        """Write and print the figures of one held-out set after round `step`; `mode` is sampled or greedy."""
        prefix = f"eval/{name}/{mode}"
        metrics = {
            f"{prefix}/accuracy": result.accuracy,
            f"{prefix}/standard_error": result.standard_error,
            f"{prefix}/boxed_share": result.boxed_share,
            f"{prefix}/truncated_share": result.truncated_share,
        }
        self._write(step, "evaluation", metrics)
        with self._writing(self._paths.evaluation_of(name, mode, step)) as path:
            write_rollouts(path, result.samples)
        self.line(
            f"eval step {step}: {name} {mode} accuracy {result.accuracy:.3f} ± {result.standard_error:.3f} "
            f"(boxed {result.boxed_share:.2f}, {len(result.samples)} samples of {result.problems} problems)"
        )
        self._ring(step, self._alarms.check({"kind": "evaluation", **metrics}))

    def checkpoint(self, run: Run, progress: Progress) -> None:
        """Save model, optimizer and `progress`; the newest `checkpoint.keep` checkpoints stay."""
        self.phase("saving")
        with self._writing(self._paths.checkpoint_of(progress.rounds)) as path:
            if self._metrics:
                self._metrics.sync()
            self.last_checkpoint = save_checkpoint(
                path.parent,
                run.model,
                run.tokenizer,
                run.optimizer,
                progress,
                run.config.checkpoint.keep,
                run.world,
            )

    def _ring(self, step: int, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms if self._world.is_main else ():
            self.alarm(step, alarm.text)
            if alarm.kind in self._stop_on:
                self.stopping = alarm.text

    def close(self) -> None:
        if self._trackers:
            self._trackers.close()
        if self._display:
            self._display.close()
        if self._metrics:
            self._metrics.close()

    def _write(self, step: int, kind: RecordKind, metrics: dict[str, float]) -> None:
        self._newest_step = step
        if self._metrics:
            with self._writing(self._paths.metrics):
                self._metrics.write(step, kind, {name: value for name, value in metrics.items() if math.isfinite(value)})
        if self._trackers:
            self._trackers.log(metrics, step)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[Path]:
        """Make the folder of a file of the run, and give its path; errors are those of `writing`."""
        good = self.last_checkpoint
        with writing(path, f"--resume goes on from {good}" if good else "--resume begins again (no checkpoint yet)"):
            path.parent.mkdir(exist_ok=True)
            yield path
