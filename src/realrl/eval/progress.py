"""The progress of an evaluation, on stderr: a bar on a terminal, otherwise a line every 30 seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from realrl.system.terminal import printable

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts the responses of one benchmark; `done` of `total` are already stored."""

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        name = printable(name)
        self._name, self._total, self._done, self._tokens = name, total, done, 0
        self._began = self._said = time.monotonic()
        self._bar: Bar | None = None
        if done:
            print(f"{name}: {done} of {total} responses are stored; generating the others", file=sys.stderr)
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=total, completed=done)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def add(self, responses: int, tokens: int) -> None:
        """Count finished responses with `tokens` tokens in total."""
        self._done += responses
        self._tokens += tokens
        now = time.monotonic()
        speed = f"{self._tokens / max(now - self._began, 1e-9):.0f} tokens/s"
        if self._bar:
            self._bar.update(self._task, completed=self._done, description=f"{self._name} {speed}")
        elif now - self._said >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._said = now
            print(f"{self._name}: {self._done} of {self._total} responses, {speed}", file=sys.stderr, flush=True)
