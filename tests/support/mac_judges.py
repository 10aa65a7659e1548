"""Judges in a worker that takes itself for one on macOS, as far as its memory goes. No torch, no pytest, as in `judges`."""

import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from realrl.verifier.pool import Judgement

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
    return Judgement("correct" if response == gold else "wrong", response)
