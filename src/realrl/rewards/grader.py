"""Verifiers by name: (response, gold answers) → `Verdict`."""

from __future__ import annotations

import atexit
import difflib
import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from realrl.errors import ConfigError
from realrl.types import Verdict
from realrl.verifier.extract import ExtractionPolicy, last_boxed
from realrl.verifier.judges import extracted, judge_choice, judge_integer, judge_text, quick_math
from realrl.verifier.pool import Judgement, JudgePool

if TYPE_CHECKING:
    from realrl.config import RewardSection

# Decides at once, or gives the item that the pool's judge takes.
Quick = Callable[[str, Sequence[str], ExtractionPolicy], Judgement | tuple[Any, ...]]


class Grader:
    """Scores batches: `quick` decides what it can in this process, the rest goes to a pool of killable workers."""

    def __init__(self, quick: Quick, pool: JudgePool | None = None, reward: RewardSection | None = None) -> None:
        self._quick = quick
        self._pool = pool
        self._reward = reward or _default_reward()
        self._policy = ExtractionPolicy(self._reward.require_boxed, self._reward.require_think_close, self._reward.bare_answers)

    def score(
        self,
        responses: Sequence[str],
        answers: Sequence[str | Sequence[str]],
        progress: Callable[[int], None] | None = None,
    ) -> list[Verdict]:
        """One verdict for each response, in order; never raises on a response, never hangs past the deadline.

        An answer may be several accepted ones. `progress` is told how many of the slow ones are done.
        """
        verdicts: list[Judgement] = []
        slow: list[tuple[int, tuple[Any, ...]]] = []
        for index, (response, answer) in enumerate(zip(responses, answers, strict=True)):
            started = time.monotonic()
            golds = (answer,) if isinstance(answer, str) else tuple(answer)
            decided = self._decide(response, golds)
            if not isinstance(decided, Judgement):
                slow.append((index, decided))
                decided = Judgement("grader_error", None, "no verifier decided")
            verdicts.append(decided._replace(seconds=time.monotonic() - started))
        if slow and self._pool is not None:
            judged = self._pool.judge([item for _, item in slow], progress)
            for (index, _), judgement in zip(slow, judged, strict=True):
                verdicts[index] = judgement
        return [self._finish(response, judgement) for response, judgement in zip(responses, verdicts, strict=True)]

    def _decide(self, response: str, golds: Sequence[str]) -> Judgement | tuple[Any, ...]:
        try:
            return self._quick(response, golds, self._policy)
        except (RecursionError, ValueError, ArithmeticError) as error:
            return Judgement("grader_error", None, f"{type(error).__name__}: {error}"[:200])

    def _finish(self, response: str, judgement: Judgement) -> Verdict:
        """The verdict, with the recipe's format share and threshold applied to its score."""
        verdict = Verdict(*judgement)
        score, share, threshold = verdict.reward, self._reward.format_weight, self._reward.threshold
        if share:
            score = (1 - share) * score + share * (last_boxed(response) is not None)
        if threshold is not None:
            score = float(score >= threshold)
        return verdict if score == verdict.reward else Verdict(*judgement[:5], score)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _default_reward(type: str = "math") -> RewardSection:
    # Importing the configuration here keeps `import realrl.rewards` fast.
    from realrl.config import RewardSection

    return RewardSection(type=type)


def _needs(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"this reward.type needs a package that is not installed: pip install 'realrl[{extra}]'")


def _whole_response(module: str, extra: str) -> Quick:
    """Every response goes to the pool as it is; ConfigError where the judge's package is missing."""
    _needs(module, extra)
    return lambda response, golds, policy: (response, golds)


def _answer_text(module: str = "re", extra: str = "") -> Quick:
    """The extracted answer goes to the pool; ConfigError where the judge's package is missing."""
    _needs(module, extra)

    def quick(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Judgement | tuple[Any, ...]:
        answer = extracted(response, policy)
        return answer if isinstance(answer, Judgement) else (answer, golds)

    return quick


_VERIFIERS: dict[str, Callable[[RewardSection], Grader]] = {}


def register_verifier(name: str, build: Callable[[RewardSection], Grader]) -> None:
    """Make `build` the verifier that `reward.type = name` means."""
    _VERIFIERS[name] = build


def _pool(judge: str, reward: RewardSection, *imports: str) -> JudgePool:
    path = f"realrl.verifier.judges:{judge}"
    return JudgePool(path, reward.workers, reward.timeout_s, reward.memory_mib, imports=imports)


register_verifier("math", lambda reward: Grader(quick_math, _pool("judge_symbolic", reward, "math_verify"), reward))
register_verifier("exact_integer", lambda reward: Grader(judge_integer, None, reward))
register_verifier("exact_match", lambda reward: Grader(judge_text, None, reward))
register_verifier("multiple_choice", lambda reward: Grader(judge_choice, None, reward))
register_verifier("regex", lambda reward: Grader(_answer_text(), _pool("judge_regex", reward), reward))
register_verifier(
    "json_schema",
    lambda reward: Grader(_whole_response("jsonschema", "json"), _pool("judge_json", reward, "jsonschema"), reward),
)
register_verifier(
    "reasoning_gym",
    lambda reward: Grader(
        _answer_text("reasoning_gym", "reasoning-gym"), _pool("judge_reasoning_gym", reward, "reasoning_gym"), reward
    ),
)


def list_verifiers() -> list[str]:
    """Names that `reward.type` may have."""
    return sorted(_VERIFIERS)


def build_grader(reward: RewardSection) -> Grader:
    """The grader of a recipe's reward section; `type` is a registered name or "module:function".

    Raises ConfigError for an unknown type, and for a function that a worker cannot load.
    """
    if ":" in reward.type:
        path = reward.type
        pool = _pool("judge_by_function", reward, path.partition(":")[0])
        # Without golds the function is loaded and not called.
        (loaded,) = pool.judge([(path, "", ())])
        if loaded.status == "grader_error":
            pool.close()
            raise ConfigError(
                f'reward.type = {path!r} cannot be loaded: {loaded.reason}; it is a function as "module:name", the module in '
                "the current folder or on PYTHONPATH"
            )
        return Grader(lambda response, golds, policy: (path, response, golds), pool, reward)
    if reward.type not in _VERIFIERS:
        near = difflib.get_close_matches(reward.type, list_verifiers(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(list_verifiers())
        raise ConfigError(f'unknown reward.type {reward.type!r}{hint} Known: {known}, or a function as "module:name"')
    return _VERIFIERS[reward.type](reward)


@functools.cache
def _shared(name: str) -> Grader:
    grader = build_grader(_default_reward(name))
    atexit.register(grader.close)
    return grader


def grade(response: str, answer: str | Sequence[str], type: str = "math") -> Verdict:
    """The verdict of one response: status, extracted answer, reason, stage, time. Any of several answers. Thread-safe."""
    return _shared(type).score([response], [answer])[0]


def verify(response: str, answer: str | Sequence[str]) -> bool:
    """Whether the response's final answer is mathematically equal to `answer`. Never raises, never hangs."""
    return grade(response, answer).status == "correct"
