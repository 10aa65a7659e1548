"""Other graders, to compare with ours."""

from __future__ import annotations

from realrl.config import RewardSection
from realrl.errors import DataError
from realrl.verifier.pool import VerifierPool

SECOND_GRADERS = {"math-verify": "verify_math_verify", "deepscaler": "verify_deepscaler"}


def second_grader_pool(name: str, reward: RewardSection) -> VerifierPool:
    """A pool that runs another grader with the deadline and memory of `reward`; raises DataError for an unknown name."""
    if name not in SECOND_GRADERS:
        raise DataError(f"--compare {name!r} is not a known grader; known: {', '.join(SECOND_GRADERS)}")
    # Without cached bytecode, importing sympy alone can take longer than the time limit for an answer.
    imports = ("math_verify", "sympy")
    path = f"realrl.verifier.verifiers:{SECOND_GRADERS[name]}"
    return VerifierPool(path, reward.workers, reward.timeout_s, reward.memory_mib, imports=imports)
