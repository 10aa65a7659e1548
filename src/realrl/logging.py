"""What a run leaves behind and shows: metrics.jsonl, rollouts as Parquet, trackers and the live display."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from realrl.alarms import STEP_RECORD
from realrl.config import Config, LogSection
from realrl.errors import ConfigError
from realrl.files import replacing, write_whole


class Tracker(Protocol):
    """A metrics backend beside metrics.jsonl."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandbLike:
    """Weights & Biases, or trackio, which offers the same calls."""

    def __init__(self, module: Any, run_dir: Path, config: dict[str, Any]) -> None:
        self._module = module
        module.init(project="realrl", name=run_dir.name, config=config)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._module.log(metrics, step=step)

    def close(self) -> None:
        self._module.finish()


def check_trackers(log: LogSection) -> None:
    """A ConfigError that names the extra, for a backend that the recipe asks for and that is not installed."""
    for name in ("tensorboard", "wandb", "trackio"):
        if getattr(log, name) and importlib.util.find_spec(name) is None:
            raise ConfigError(f"log.{name} = true needs a package that is not installed: pip install 'realrl[{name}]'")


class Trackers:
    """The backends that the recipe asks for. Training depends on none: one that fails, at whatever, is told of once and left
    out from then on; metrics.jsonl has it all."""

    def __init__(self, log: LogSection, run_dir: Path, config: Config, on_fault: Callable[[str], None]) -> None:
        self._on_fault = on_fault
        self._open: dict[str, Tracker] = {}
        for name in ("tensorboard", "wandb", "trackio"):
            if getattr(log, name):
                with self._guarded(name):
                    self._open[name] = _start(name, run_dir, config)

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.log(metrics, step)

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever a backend raises
            self._open.pop(name, None)
            what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self._on_fault(f"WARNING: log.{name} failed ({what}) and gets no more metrics; metrics.jsonl has them all")


def _start(name: str, run_dir: Path, config: Config) -> Tracker:
    if name == "tensorboard":
        return _TensorBoard(run_dir)
    return _WandbLike(importlib.import_module(name), run_dir, config.model_dump(mode="json"))


class MetricsFile:
    """metrics.jsonl: one JSON object a line, written through at once; on resume the lines after the checkpoint go.

    `kept` are the records before. With `evaluation_due` the evaluation of `resume_step` goes, too. Raises OSError.
    """

    def __init__(self, path: Path, resume_step: int = 0, *, evaluation_due: bool = False) -> None:
        self.kept: list[dict[str, Any]] = []
        end = position = 0
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    position += len(line)
                    record = _record(line)
                    if record is None or record["step"] > resume_step:
                        continue
                    if record["step"] < resume_step or STEP_RECORD in record or not evaluation_due:
                        self.kept.append(record)
                        end = position
            # Cut where it lies: that takes no space, and at no moment less than the records before is there.
            os.truncate(path, end)
        self._file = path.open("ab")
        self._began = time.monotonic()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        # The first is a label: the clock on the wall may jump.
        clocks = {"time": time.time(), "time/run_s": time.monotonic() - self._began}
        self._file.write((json.dumps({"step": step, **clocks, **metrics}) + "\n").encode())
        self._file.flush()

    def sync(self) -> None:
        """Have everything so far on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        # What could not be written was an error then.
        with contextlib.suppress(OSError):
            self._file.close()


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a whole line; None for one torn by a crash."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def step_records(path: Path) -> list[dict[str, Any]]:
    """The records of sampling rounds in metrics.jsonl, in order; none without the file. Raises OSError."""
    if not path.exists():
        return []
    with path.open("rb") as lines:
        return [record for line in lines if (record := _record(line)) and STEP_RECORD in record]


def last_step(path: Path) -> int:
    """The last sampling round that metrics.jsonl records; 0 without any. Raises OSError."""
    return max((record["step"] for record in step_records(path)), default=0)


def take_back_alarms(path: Path, resume_step: int) -> None:
    """Remove the alarms of the steps after a checkpoint, which ring again. Raises OSError."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        steps = [re.match(r"step (\d+): .*\n", line) for line in lines]
        kept = [line for line, step in zip(lines, steps, strict=True) if step and int(step[1]) <= resume_step]
        write_whole(path, "".join(kept))


def write_rollouts(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Save rows as zstd Parquet, whole or not at all; the columns are those of all rows, absent values are null."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: _column([row.get(name) for row in rows]) for name in names})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except UnicodeEncodeError:
        # A lone half of a surrogate pair, which no UTF-8 file can hold.
        return pa.array([v.encode("utf-8", "replace").decode("utf-8") if isinstance(v, str) else v for v in values])


def printable(text: str) -> str:
    """Text from outside as one line of printable characters, so that no escape sequence reaches the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class Display:
    """A progress bar with one line a step on a terminal, the same lines plainly elsewhere."""

    def __init__(self, total: int, start: int, *, rich: bool) -> None:
        self.console = Console(highlight=False, soft_wrap=True, markup=False)
        self._bar: Progress | None = None
        if rich and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("starting", total=total, completed=start)
            self._bar.start()
        self._total = total
        self._first = start
        self._began = time.monotonic()

    def phase(self, name: str) -> None:
        """Say what the current step is doing."""
        if self._bar:
            self._bar.update(self._task, description=printable(name))

    def step(self, step: int, m: dict[str, float]) -> None:
        """One line for a finished step."""
        per_step = (time.monotonic() - self._began) / max(step - self._first, 1)
        self.line(
            f"step {step:>4}/{self._total}  reward {m['reward/mean']:.3f}  solved all {m['groups/solved_all']:.2f} "
            f"none {m['groups/solved_none']:.2f}  boxed {m['format/boxed_share']:.2f}  "
            f"s+ {m['score/positive_mean']:+.4f} s- {m['score/negative_mean']:+.4f}  entropy {m['policy/entropy']:.3f}  "
            f"len {m['response/length_mean']:.1f} cut {m['response/truncated_share']:.2f}  "
            f"grad {m['grad/norm']:.2f}  {m['throughput/tokens_per_s']:.0f} tok/s  "
            f"ETA {_duration(per_step * (self._total - step))}"
        )
        if self._bar:
            self._bar.update(self._task, completed=step)

    def line(self, text: str) -> None:
        try:
            self.console.print(text)
            if not self.console.quiet:
                sys.stdout.flush()
        except OSError:
            # The terminal is gone, or the disk of the log is full: no reason to stop.
            self.console.quiet = True

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
