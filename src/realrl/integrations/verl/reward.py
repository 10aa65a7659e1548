"""Our verifier as verl's reward function, in worker processes that can be killed.

    reward.custom_reward_function.path=pkg://realrl.integrations.verl.reward
    +reward.custom_reward_function.reward_kwargs.require_boxed=True

The keyword arguments are the keys of a recipe's `[reward]`. verl runs the function in `reward.num_workers` processes, with
many threads in each; at most `workers` threads of a process grade at the same time.
"""

from __future__ import annotations

import atexit
import json
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from realrl.config import RewardSection
from realrl.errors import ConfigError, RealrlError
from realrl.rewards import Grader, build_grader


class NoVerdictError(RealrlError):
    """The verifier hung, crashed or failed on one response, so its reward is unknown."""


def compute_score(
    data_source: str, solution_str: str, ground_truth: str | Sequence[str], extra_info: Any = None, **reward: Any
) -> dict[str, float]:
    """`score` (the reward), `acc` (1 if the answer is right) and `level` (for TRPA) of one response. Thread-safe.

    `ground_truth` is one answer, or several as a list or as JSON of a list of strings; any of them is right.

    Raises NoVerdictError if there is no verdict: verl logs it and leaves the rollout out of its group, because a reward of 0
    could be a false label. Raises ConfigError for an unknown key of `[reward]`.
    """
    graders = _shared_graders(reward_section(reward))
    grader = graders.get()
    try:
        verdict = grader.score([solution_str], [accepted_answers(ground_truth)])[0]
    finally:
        graders.put(grader)
    if verdict.status == "grader_error":
        raise NoVerdictError(
            f"no verdict on a response to a problem of {data_source!r} with the answer {ground_truth!r}: {verdict.reason}; the "
            "rollout is left out. If this is frequent, raise +reward.custom_reward_function.reward_kwargs.timeout_s"
        )
    return {"score": verdict.reward, "acc": float(verdict.status == "correct"), "level": float(verdict.level)}


def reward_section(fields: Mapping[str, Any]) -> RewardSection:
    """The keyword arguments as a recipe's `[reward]`. Raises ConfigError for an unknown key or a value out of range."""
    try:
        return RewardSection(**fields)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        known = ", ".join(RewardSection.model_fields)
        raise ConfigError(f"{faults} (the keys are those of [reward] in a recipe: {known})") from error


def accepted_answers(ground_truth: str | Sequence[str]) -> tuple[str, ...]:
    """Every accepted answer: `[1, 2]` is one answer (a list of numbers), `["1", "2"]` are two."""
    if not isinstance(ground_truth, str):
        return tuple(str(answer) for answer in ground_truth)
    if ground_truth.lstrip().startswith("["):
        try:
            found = json.loads(ground_truth)
        except json.JSONDecodeError:
            return (ground_truth,)
        if found and all(isinstance(answer, str) for answer in found):
            return tuple(found)
    return (ground_truth,)


def build_graders(reward: RewardSection) -> list[Grader]:
    """`workers` graders with one process each, which starts at the first use. Raises ConfigError for an unknown type.

    One grader with `workers` processes would not help: it grades one batch at a time, and verl asks for single responses.
    """
    return [build_grader(reward.model_copy(update={"workers": 1})) for _ in range(reward.workers)]


_graders: dict[RewardSection, queue.Queue[Grader]] = {}
_lock = threading.Lock()


def _shared_graders(reward: RewardSection) -> queue.Queue[Grader]:
    """The idle graders of this process."""
    with _lock:
        if reward not in _graders:
            idle = _graders[reward] = queue.Queue()
            for grader in build_graders(reward):
                atexit.register(grader.close)
                idle.put(grader)
        return _graders[reward]
