"""The self-test of a data set: each gold answer is graded against itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from realrl.config import RewardSection
from realrl.rewards.grader import build_grader
from realrl.types import Problem, Verdict
from realrl.verifier.equivalence import is_words, readable


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of the self-test: number of golds, golds that fail with the reason, golds that only compare as text."""

    total: int
    failures: list[tuple[Problem, Verdict]]
    text_only: list[Problem]


def check_golds(
    problems: Sequence[Problem], reward: RewardSection | None = None, progress: Callable[[int], None] | None = None
) -> CheckReport:
    """Grade a response that boxes the gold answer, for every problem; each must be correct."""
    with build_grader(reward or RewardSection()) as grader:
        verdicts = grader.score([f"\\boxed{{{p.answer}}}" for p in problems], [p.answer for p in problems], progress)
    failures = [(p, verdict) for p, verdict in zip(problems, verdicts, strict=True) if verdict.status != "correct"]
    failed = {id(problem) for problem, _ in failures}
    text_only = [p for p in problems if id(p) not in failed and not (readable(p.answer) or is_words(p.answer))]
    return CheckReport(len(problems), failures, text_only)
