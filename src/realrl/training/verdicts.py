"""Whether the verifier works: it is tried before training, and its verdicts are checked after each round."""

from __future__ import annotations

from collections.abc import Sequence

from realrl.config import Config
from realrl.errors import ConfigError
from realrl.rewards import Grader
from realrl.types import Problem, Verdict

_NONSENSE = "I do not know."


def try_verifier(grader: Grader, config: Config, problems: Sequence[Problem]) -> list[str]:
    """Grade each problem's gold in a box, and a nonsense answer; returns notes on the rewards.

    Raises ConfigError if the verifier fails on all of them, or gives a reward that the objective cannot use.
    """
    name = f"reward.type = {config.reward.type!r}"
    golds = [problem.golds for problem in problems for _ in range(2)]
    answers = [text for problem in problems for text in (f"\\boxed{{{problem.answer}}}", _NONSENSE)]
    verdicts = grader.score(answers, golds)
    if fault := fault_of(verdicts, config):
        raise ConfigError(f"before training: {fault}")
    notes = [f"{name}, tried: {answers[0]!r} gets reward {verdicts[0].reward:g}, {_NONSENSE!r} {verdicts[1].reward:g}"]
    if failures := failures_of(verdicts):
        notes.append(f"WARNING: {name} failed on {failures}; such a response gets reward 0")
    return notes


def fault_of(verdicts: Sequence[Verdict], config: Config) -> str:
    """Why training on these verdicts is impossible; empty if it is possible."""
    name = f"reward.type = {config.reward.type!r}"
    if all(verdict.status == "grader_error" for verdict in verdicts):
        if ":" in config.reward.type:
            remedy = "it is called with a response and an answer, and returns a bool or a score in [0, 1]"
        else:
            remedy = f"look at the golds with: realrl data check {config.data.train} --reward {config.reward.type}"
        return f"{name} failed on {failures_of(verdicts)}; {remedy}"
    graded = [verdict.reward for verdict in verdicts if verdict.reward not in (0, 1)]
    if graded and config.objective.needs_labels:
        return (
            f"{name} gave the reward {graded[0]:g}, and objective.type = {config.objective.type!r} needs labels 0 or 1; set "
            "reward.threshold (a score from there on is 1), or choose an advantage-based objective (grpo, dapo)"
        )
    return ""


def failures_of(verdicts: Sequence[Verdict]) -> str:
    """How many responses the verifier failed on, and the first reason; empty if it failed on none."""
    reasons = [verdict.reason for verdict in verdicts if verdict.status == "grader_error"]
    return f"{len(reasons)} of {len(verdicts)} responses, first: {reasons[0]}" if reasons else ""
