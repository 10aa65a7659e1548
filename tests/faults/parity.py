"""A verifier in a module of its own: the grading workers import it, and nothing else."""


def even(response: str, golds: list[str]) -> bool:
    """Holds half of the time for a model that writes at random."""
    return len(response) % 2 == 0
