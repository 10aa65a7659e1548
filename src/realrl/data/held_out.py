"""Held-out sets, as training, `realrl eval`, `realrl estimate` and the exports read them."""

from __future__ import annotations

from dataclasses import dataclass

from realrl.config import DataSection
from realrl.data.datasets import load_problems
from realrl.types import Problem

# Problems of a generated task where no number is given.
_TASK_PROBLEMS = 128


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The first problems of a held-out set, how many the set has, and warnings of rows that were left out."""

    problems: list[Problem]
    total: int
    warnings: list[str]


def held_out_problems(
    data: DataSection, name: str, *, seed: int = 0, count: int | None = None, strict: bool = False
) -> HeldOut:
    """At most `count` problems of the set `name`; by default all, or 128 of a generated task.

    Raises DataError for a set that cannot be found or read, and with `strict` for a bad row.
    """
    loaded = load_problems(
        name,
        columns=data.columns,
        strict=strict,
        seed=seed,
        task_options=data.task,
        count=count or _TASK_PROBLEMS,
        split="eval",
    )
    total = len(loaded.problems)
    problems = [loaded.problems[index] for index in range(min(count or total, total))]
    return HeldOut(problems, total, loaded.warnings())
