"""Seconds of the parts of a round."""

from __future__ import annotations

import time


class Clock:
    """A stopwatch: `lap` ends a named part, and the next begins. `seconds` holds the finished parts."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
