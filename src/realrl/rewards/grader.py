"""Grade responses with a verifier, chosen by name: (response, gold answers) → `Verdict`."""

from __future__ import annotations

import atexit
import difflib
import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from realrl.errors import ConfigError
from realrl.types import Verdict
from realrl.verifier.extract import ExtractionPolicy, last_boxed
from realrl.verifier.pool import VerifierPool
from realrl.verifier.verifiers import extracted, quick_math, verify_choice, verify_integer, verify_text

if TYPE_CHECKING:
    from realrl.config import RewardSection

# Returns a verdict at once, or the item for the pool.
Quick = Callable[[str, Sequence[str], ExtractionPolicy], Verdict | tuple[Any, ...]]


class Grader:
    """Grades batches: `quick` grades what it can in this process; a pool of worker processes grades the rest."""

    def __init__(self, quick: Quick, pool: VerifierPool | None = None, reward: RewardSection | None = None) -> None:
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
        """One verdict for each response, in order; no response can raise an error or take longer than the deadline.

        Each answer is a text, or several accepted texts. `progress` gets the number of responses that the pool graded.
        """
        verdicts: list[Verdict] = []
        slow: list[tuple[int, tuple[Any, ...]]] = []
        for index, (response, answer) in enumerate(zip(responses, answers, strict=True)):
            started = time.monotonic()
            golds = (answer,) if isinstance(answer, str) else tuple(answer)
            decided = self._decide(response, golds)
            if not isinstance(decided, Verdict):
                slow.append((index, decided))
                decided = Verdict("grader_error", None, "no verifier decided")
            verdicts.append(replace(decided, seconds=time.monotonic() - started))
        if slow and self._pool is not None:
            graded = self._pool.grade([item for _, item in slow], progress)
            for (index, _), verdict in zip(slow, graded, strict=True):
                verdicts[index] = verdict
        return [self._finish(response, verdict) for response, verdict in zip(responses, verdicts, strict=True)]

    def _decide(self, response: str, golds: Sequence[str]) -> Verdict | tuple[Any, ...]:
        try:
            return self._quick(response, golds, self._policy)
        except (RecursionError, ValueError, ArithmeticError) as error:
            return Verdict("grader_error", None, f"{type(error).__name__}: {error}"[:200])

    def _finish(self, response: str, verdict: Verdict) -> Verdict:
        """Apply the recipe's `format_weight` and `threshold` to the verdict's score."""
        score, share, threshold = verdict.reward, self._reward.format_weight, self._reward.threshold
        if share:
            score = (1 - share) * score + share * (last_boxed(response) is not None)
        if threshold is not None:
            score = float(score >= threshold)
        return verdict if score == verdict.reward else replace(verdict, score=score)

    def close(self) -> None:
        """End the worker processes."""
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
        raise ConfigError(f"this reward.type needs the package {module}: pip install 'realrl[{extra}]'")


def _whole_response(module: str, extra: str) -> Quick:
    """Send whole responses to the pool; raises ConfigError if the verifier's package is not installed."""
    _needs(module, extra)
    return lambda response, golds, policy: (response, golds)


def _answer_text(module: str = "re", extra: str = "") -> Quick:
    """Send extracted answers to the pool; raises ConfigError if the verifier's package is not installed."""
    _needs(module, extra)

    def quick(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Verdict | tuple[Any, ...]:
        answer = extracted(response, policy)
        return answer if isinstance(answer, Verdict) else (answer, golds)

    return quick


_VERIFIERS: dict[str, Callable[[RewardSection], Grader]] = {}


def register_verifier(name: str, build: Callable[[RewardSection], Grader]) -> None:
    """Register `build`, so that `reward.type = name` uses the grader that it returns."""
    _VERIFIERS[name] = build


def _pool(verifier: str, reward: RewardSection, *imports: str) -> VerifierPool:
    path = f"realrl.verifier.verifiers:{verifier}"
    return VerifierPool(path, reward.workers, reward.timeout_s, reward.memory_mib, imports=imports)


register_verifier("math", lambda reward: Grader(quick_math, _pool("verify_symbolic", reward, "math_verify"), reward))
register_verifier("exact_integer", lambda reward: Grader(verify_integer, None, reward))
register_verifier("exact_match", lambda reward: Grader(verify_text, None, reward))
register_verifier("multiple_choice", lambda reward: Grader(verify_choice, None, reward))
register_verifier("regex", lambda reward: Grader(_answer_text(), _pool("verify_regex", reward), reward))
register_verifier(
    "json_schema",
    lambda reward: Grader(_whole_response("jsonschema", "json"), _pool("verify_json", reward, "jsonschema"), reward),
)
register_verifier(
    "reasoning_gym",
    lambda reward: Grader(
        _answer_text("reasoning_gym", "reasoning-gym"), _pool("verify_reasoning_gym", reward, "reasoning_gym"), reward
    ),
)


def list_verifiers() -> list[str]:
    """The names of all registered verifiers, the possible values of `reward.type`."""
    return sorted(_VERIFIERS)


def build_grader(reward: RewardSection) -> Grader:
    """The grader for a recipe's reward section; its `type` is a registered name or "module:function".

    Raises ConfigError for an unknown type, or if a worker cannot load the function.
    """
    if ":" in reward.type:
        path = reward.type
        pool = _pool("verify_by_function", reward, path.partition(":")[0])
        # An item without golds loads the function, but does not call it.
        (loaded,) = pool.grade([(path, "", ())])
        if loaded.status == "grader_error":
            pool.close()
            raise ConfigError(
                f'reward.type = {path!r} cannot be loaded: {loaded.reason}; give a function as "module:name", with the module '
                "in the current folder or on PYTHONPATH"
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
    """Grade one response; `answer` may be several accepted answers. Thread-safe."""
    return _shared(type).score([response], [answer])[0]


def verify(response: str, answer: str | Sequence[str]) -> bool:
    """Whether the response's final answer is mathematically equal to `answer`. No response makes it raise or hang."""
    return grade(response, answer).status == "correct"
