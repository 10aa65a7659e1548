"""Our verifiers as TRL reward functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from realrl.config import RewardSection
from realrl.errors import ConfigError
from realrl.rewards import build_grader


def verifier_reward(type: str = "math", column: str = "answer", **options: Any) -> Callable[..., list[float]]:
    """A reward function for `reward_funcs`: 1.0 if the completion's answer is right, otherwise 0.0.

    `column` is the data set's column of gold answers (a text, or a list of accepted ones). `type` and `options` are the keys
    of a recipe's `[reward]` table. Verifiers run in worker processes that can be killed. Raises ConfigError for unknown keys.
    """
    try:
        section = RewardSection(type=type, **options)
    except ValidationError as error:
        raise ConfigError(f"verifier_reward: {error}") from error
    grader = build_grader(section)

    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        if column not in columns:
            raise ConfigError(
                f"verifier_reward: the data set has no column {column!r} of gold answers; it has {', '.join(sorted(columns))}: "
                "rename one, or set verifier_reward(column=...)"
            )
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        return [verdict.reward for verdict in grader.score(texts, columns[column])]

    reward.__name__ = f"verifier_{type.replace(':', '_')}"
    return reward
