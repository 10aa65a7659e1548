"""How long tests wait: what hangs comes to an end, and a slow machine that is busy with something else comes through."""

import time
from collections.abc import Callable

PATIENCE_S = 1800.0


def wait_until(condition: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    """Ask until the condition holds; AssertionError after `within_s` seconds."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not within {within_s} s"
        time.sleep(0.02)
