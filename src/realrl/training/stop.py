"""Ctrl-C and SIGTERM during training."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

import torch

from realrl.training.distributed import World


class StopRequest:
    """Ctrl-C or SIGTERM asks to stop after the round in progress; a second signal ends the process at once.

    `signum` is the signal that came, 0 before. A context manager.
    """

    def __init__(self) -> None:
        self.signum = 0

    def agreed(self, world: World, device: torch.device) -> bool:
        """Whether any rank was asked to stop; every rank takes part."""
        return bool(world.largest(self.signum, device))

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread set signal handlers.
        self._previous: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._handle) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, signum: int, frame: object) -> None:
        self.signum = signum
        # The kernel's default handler needs no Python, so a second signal also ends a process that waits inside a library. What
        # is on disk is then as after kill -9, and a run survives that.
        for one in self._previous:
            signal.signal(one, signal.SIG_DFL)
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        text = f"{name}: finishing this step, then saving a checkpoint; again to stop at once, without saving"
        # The main thread may be inside the display, so this writes around it. A progress bar hides the cursor.
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""
        with contextlib.suppress(OSError):
            os.write(2, f"{show_cursor}{text}\n".encode())

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
