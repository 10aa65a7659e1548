"""The order of training prompts. It depends only on the seed and the round, so that a run can be resumed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from realrl.seeding import derive_seed
from realrl.types import Problem, Prompt


class PromptStream:
    """The prompts of each sampling round. A finite set is shuffled in every epoch; an endless set is read in order."""

    def __init__(self, problems: Sequence[Problem], render: Callable[[Problem], Prompt], *, endless: bool, seed: int) -> None:
        self._problems = problems
        self._render = render
        self._endless = endless
        self._seed = seed
        self._order: tuple[int, list[int]] = (-1, [])

    def step(self, step: int, count: int) -> list[Prompt]:
        """The `count` prompts of round `step` (from 0)."""
        return [self._render(self._problems[self._index(step * count + offset)]) for offset in range(count)]

    def problems(self, draws: int) -> list[Problem]:
        """All problems of a finite set, or the problems of the first `draws` prompts of an endless one."""
        return [self._problems[index] for index in range(draws if self._endless else len(self._problems))]

    def _index(self, position: int) -> int:
        if self._endless:
            return position
        epoch, offset = divmod(position, len(self._problems))
        if self._order[0] != epoch:
            order = list(range(len(self._problems)))
            random.Random(derive_seed(self._seed, "epoch", epoch)).shuffle(order)
            self._order = (epoch, order)
        return self._order[1][offset]
