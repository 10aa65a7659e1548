"""Verifiers: (response, gold answer) → `Verdict`, by name; rewards are 0, 1, or scores between them.

Names are loaded on first use: the grading workers import this package too and must stay free of torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realrl.rewards.extract import ExtractionPolicy, extract_answer, last_boxed
    from realrl.rewards.grader import Grader, build_verifier, grade, list_verifiers, register_verifier, verify
    from realrl.rewards.grading import Grading

__all__ = [
    "ExtractionPolicy",
    "Grader",
    "Grading",
    "build_verifier",
    "extract_answer",
    "grade",
    "last_boxed",
    "list_verifiers",
    "register_verifier",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("ExtractionPolicy", "extract_answer", "last_boxed"):
        from realrl.rewards import extract

        return getattr(extract, name)
    from realrl.rewards import grader, grading

    return getattr(grading if name == "Grading" else grader, name)
