"""Verifiers by name: (response, gold answer) → `Verdict`."""

from __future__ import annotations

import atexit
import difflib
import functools
from collections.abc import Callable, Sequence
from types import TracebackType

from realrl.config import RewardSection
from realrl.errors import ConfigError
from realrl.rewards.judges import judge_integer, quick_math
from realrl.rewards.pool import Judgement, JudgePool
from realrl.types import Verdict


class Grader:
    """Scores batches: `quick` decides what it can in this process, the rest goes to a pool of killable workers."""

    def __init__(self, quick: Callable[[str, str], Judgement | None], pool: JudgePool | None = None) -> None:
        self._quick = quick
        self._pool = pool

    def score(self, responses: Sequence[str], answers: Sequence[str | Sequence[str]]) -> list[Verdict]:
        """One verdict for each response, in order; never raises on a response, never hangs past the deadline.

        An answer may be several accepted ones.
        """
        answers = [answer if isinstance(answer, str) else answer[0] for answer in answers]
        judgements = [self._quick(response, answer) for response, answer in zip(responses, answers, strict=True)]
        open_items = [index for index, judgement in enumerate(judgements) if judgement is None]
        if open_items and self._pool is not None:
            slow = self._pool.judge([(responses[index], answers[index]) for index in open_items])
            for index, judgement in zip(open_items, slow, strict=True):
                judgements[index] = judgement
        return [Verdict(*(judgement or ("grader_error", None, "no verifier decided"))) for judgement in judgements]

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


_VERIFIERS: dict[str, Callable[[RewardSection], Grader]] = {}


def register_verifier(name: str, build: Callable[[RewardSection], Grader]) -> None:
    """Make `build` the verifier that `reward.type = name` means."""
    _VERIFIERS[name] = build


register_verifier("exact_integer", lambda reward: Grader(judge_integer))
register_verifier(
    "math",
    lambda reward: Grader(quick_math, JudgePool("realrl.rewards.judges:judge_math", reward.workers, reward.timeout_s)),
)


def list_verifiers() -> list[str]:
    """Names that `reward.type` may have."""
    return sorted(_VERIFIERS)


def build_verifier(reward: RewardSection) -> Grader:
    """The grader of a recipe's reward section; raises ConfigError for an unknown type."""
    if reward.type not in _VERIFIERS:
        near = difflib.get_close_matches(reward.type, list_verifiers(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown reward.type {reward.type!r}{hint} Known: {', '.join(list_verifiers())}")
    return _VERIFIERS[reward.type](reward)


@functools.cache
def _shared(name: str) -> Grader:
    grader = build_verifier(RewardSection(type=name))
    atexit.register(grader.close)
    return grader


def grade(response: str, answer: str, type: str = "math") -> Verdict:
    """The verdict of one response with status, extracted answer and reason. Thread-safe."""
    return _shared(type).score([response], [answer])[0]


def verify(response: str, answer: str) -> bool:
    """Whether the response's final answer is mathematically equal to `answer`. Never raises, never hangs."""
    return grade(response, answer).status == "correct"
