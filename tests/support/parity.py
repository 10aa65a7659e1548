"""A verifier in a module of its own: the grading workers import it, and nothing else."""

import time
from pathlib import Path


def even(response: str, gold: str) -> bool:
    """Holds half of the time for a model that writes at random."""
    return len(response) % 2 == 0


def held(response: str, gold: str) -> bool:
    """`even`, once no file at the gold is there any more; while it waits, a file `GOLD.held` is there."""
    while Path(gold).exists():
        Path(f"{gold}.held").touch()
        time.sleep(0.01)
    return even(response, gold)
