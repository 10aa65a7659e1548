"""What a run prints while it trains."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from realrl.system.terminal import printable


class Display:
    """A progress bar and one line per round on a terminal; elsewhere the lines alone."""

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
        """Say what the current round is doing."""
        if self._bar:
            self._bar.update(self._task, description=printable(name))

    def round(self, step: int, m: dict[str, float]) -> None:
        """One line for finished round `step`."""
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
            # The terminal was closed, or the disk of a log file is full: training goes on.
            self.console.quiet = True

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
