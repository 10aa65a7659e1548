"""The problems of a recipe as a list, for engines that read a data set and not a stream."""

from __future__ import annotations

from realrl.config import DataSection
from realrl.data import training_problems
from realrl.errors import ConfigError
from realrl.types import Problem


def problems_to_train(data: DataSection, *, seed: int, count: int | None) -> tuple[list[Problem], list[str]]:
    """The training problems, filtered and cleaned as `[data]` says, and what was left out; a generated task's first `count`.

    Raises ConfigError for a generated task without `count`, DataError as the trainer does.
    """
    problems, notes = training_problems(data, seed)
    if not getattr(problems, "endless", False):
        return list(problems), notes
    if count is None:
        raise ConfigError(
            f"data.train = {data.train!r} is generated and has no end; say how many problems, e.g. "
            "problems = train.steps × train.prompts_per_step"
        )
    return [problems[index] for index in range(count)], notes
