"""Random streams without state: the run's seed, a name and a counter give the seed of every draw.

A checkpoint therefore stores no generator state. A resumed run needs only the step number to draw the same numbers as an
uninterrupted run.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed for the stream named by `stream`, e.g. `derive_seed(0, "sampling", step)`."""
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *stream: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A new torch generator at the start of the stream."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *stream))
