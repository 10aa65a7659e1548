"""Random streams without state: the seed of every draw follows from the run's seed, a name and a counter.

A checkpoint therefore stores no state of a generator: from the step number alone, a resumed run draws what an uninterrupted
run would draw.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed of the stream named by `stream`, e.g. `derive_seed(0, "sampling", step)`."""
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *stream: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A new torch generator at the start of the stream."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *stream))
