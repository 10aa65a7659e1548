"""Random streams that have no state: every draw's seed follows from the run's seed, a name and a counter.

A checkpoint therefore needs only the step number to go on with the very draws of an uninterrupted run.
"""

import hashlib

import torch


def derive_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed of the stream named by `stream`, e.g. `derive_seed(0, "sampling", step)`."""
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *stream: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh torch generator at the start of the stream."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *stream))
