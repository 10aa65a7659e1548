"""Other graders, held beside our verifier."""

from __future__ import annotations

from realrl.config import RewardSection
from realrl.errors import DataError
from realrl.verifier.pool import JudgePool

SECOND_GRADERS = {"math-verify": "judge_math_verify", "deepscaler": "judge_deepscaler"}


def second_grader(name: str, reward: RewardSection) -> JudgePool:
    """Workers of another grader, with the deadline and memory of `reward`; DataError for an unknown name."""
    if name not in SECOND_GRADERS:
        raise DataError(f"--compare {name!r} is no known grader; known: {', '.join(SECOND_GRADERS)}")
    # Imported before an answer's seconds run: where Python keeps no bytecode, sympy alone takes longer than they are.
    imports = ("math_verify", "sympy")
    path = f"realrl.verifier.judges:{SECOND_GRADERS[name]}"
    return JudgePool(path, reward.workers, reward.timeout_s, reward.memory_mib, imports=imports)
