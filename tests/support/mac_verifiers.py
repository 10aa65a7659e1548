"""Verifiers for a worker that limits its memory as on macOS. No torch, no pytest, as in `pool_verifiers`."""

import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from realrl.types import Verdict

sys.platform = "darwin"


def _refuse(kind, limits):
    raise ValueError("current limit exceeds maximum limit")


def _in_bytes(who):
    """Linux counts in KiB, and from the peak of the parent on."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return SimpleNamespace(ru_maxrss=next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


resource.setrlimit, resource.getrusage = _refuse, _in_bytes


def hoard(response: str, gold: str):
    if response == "hoard":
        held = []
        for _ in range(600):
            held.append(bytearray(b"x" * (1 << 20)))
            time.sleep(0.0005)
    return Verdict("correct" if response == gold else "wrong", response)
