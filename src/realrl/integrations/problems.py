"""The training problems of a recipe as a list, for engines that read a data set."""

from __future__ import annotations

from realrl.config import DataSection
from realrl.data import training_problems
from realrl.errors import ConfigError
from realrl.types import Problem


def problems_to_train(data: DataSection, *, seed: int, count: int | None) -> tuple[list[Problem], list[str]]:
    """The training problems, filtered and cleaned as in `[data]`, and notes on what was left out.

    A generated task gives its first `count` problems. Raises ConfigError for a generated task without `count`, and DataError
    as the trainer does.
    """
    problems, notes = training_problems(data, seed)
    if not getattr(problems, "endless", False):
        return list(problems), notes
    if count is None:
        raise ConfigError(
            f"data.train = {data.train!r} is generated and has no end; give the number of problems, e.g. "
            "problems = train.steps × train.prompts_per_step"
        )
    return [problems[index] for index in range(count)], notes
