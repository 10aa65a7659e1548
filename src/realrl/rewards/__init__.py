"""Rewards: a verifier's verdicts on rollouts, as 0, 1 or a score in between."""

from realrl.rewards.grader import Grader, build_grader, grade, list_verifiers, register_verifier, verify
from realrl.rewards.grading import Grading

__all__ = ["Grader", "Grading", "build_grader", "grade", "list_verifiers", "register_verifier", "verify"]
