"""Other graders, to compare with ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from realrl.config import RewardSection
from realrl.errors import DataError
from realrl.verifier.pool import VerifierPool

SECOND_GRADERS = {"math-verify": "verify_math_verify", "deepscaler": "verify_deepscaler"}


@dataclass(frozen=True, slots=True)
class SecondVerdict:
    """The status that a second grader gives a response, and whether it disagrees with ours on right or wrong."""

    status: str
    disagrees: bool


def check_second_grader(name: str) -> None:
    """Raise DataError for an unknown name."""
    if name not in SECOND_GRADERS:
        raise DataError(f"--compare {name!r} is not a known grader; known: {', '.join(SECOND_GRADERS)}")


def grade_again(
    name: str,
    responses: Sequence[str],
    golds: Sequence[Sequence[str]],
    ours: Sequence[str],
    reward: RewardSection,
    progress: Callable[[int], None] | None = None,
) -> list[SecondVerdict]:
    """The grader `name` on responses whose statuses by our verifier are `ours`, with the deadline and memory of `reward`.

    Raises DataError for an unknown name.
    """
    check_second_grader(name)
    # Without cached bytecode, importing sympy alone can take longer than the time limit for an answer.
    imports = ("math_verify", "sympy")
    path = f"realrl.verifier.verifiers:{SECOND_GRADERS[name]}"
    pool = VerifierPool(path, reward.workers, reward.timeout_s, reward.memory_mib, imports=imports)
    try:
        others = pool.grade(list(zip(responses, golds, strict=True)), progress)
    finally:
        pool.close()
    return [
        SecondVerdict(other.status, (status == "correct") != (other.status == "correct"))
        for status, other in zip(ours, others, strict=True)
    ]
