"""Generated tasks: arithmetic problems with verifiable answers; the recipe sets the difficulty.

A hash of its text decides whether a problem is held out for evaluation, so held-out problems never occur in training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from realrl.errors import ConfigError
from realrl.types import Problem

_HELD_OUT_SHARE = 8
_PATIENCE = 2000


def _operand(rng: random.Random, digits: int, smallest: int = 1) -> int:
    return rng.randint(smallest if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _largest_of_three(rng: random.Random, digits: int) -> tuple[str, int]:
    numbers = rng.sample(range(1, 10**digits), 3)
    return f"What is the largest of these numbers: {', '.join(map(str, numbers))}?", max(numbers)


def _addition(rng: random.Random, digits: int) -> tuple[str, int]:
    a, b = _operand(rng, digits), _operand(rng, digits)
    return f"What is {a} + {b}?", a + b


def _multiplication(rng: random.Random, digits: int) -> tuple[str, int]:
    a, b = _operand(rng, 1, 2), _operand(rng, digits, 2)
    return f"What is {a} * {b}?", a * b


def _column_addition(rng: random.Random, digits: int) -> tuple[str, int]:
    a, b = _operand(rng, digits), _operand(rng, digits)
    return f"{a}+{b}=", a + b


def _add_or_multiply(rng: random.Random, digits: int) -> tuple[str, int]:
    return _addition(rng, digits) if rng.random() < 0.5 else _multiplication(rng, digits)


# name → (generator, default number of digits)
TASKS: dict[str, tuple[Callable[[random.Random, int], tuple[str, int]], int]] = {
    "largest_of_three": (_largest_of_three, 2),
    "addition": (_addition, 1),
    "multiplication": (_multiplication, 1),
    "add_or_multiply": (_add_or_multiply, 1),
    "column_addition": (_column_addition, 2),
}


def is_held_out(text: str) -> bool:
    """Whether the problem with this text belongs to the evaluation split (one in eight)."""
    return hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT_SHARE == 0


class TaskProblems(Sequence[Problem]):
    """The problems of a task. Problem i depends only on seed, split and i; the training split is endless."""

    def __init__(self, name: str, split: str, seed: int, options: Mapping[str, Any], count: int = 0) -> None:
        known = {"digits"}
        if unknown := set(options) - known:
            raise ConfigError(f"data.task of {name} has no key {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
        self._generate, default_digits = TASKS[name]
        self._digits = options.get("digits", default_digits)
        if not isinstance(self._digits, int) or not 1 <= self._digits <= 9:
            raise ConfigError(f"data.task.digits = {self._digits!r}; it must be a whole number from 1 to 9")
        self._name, self._split, self._seed = name, split, seed
        self.endless = split == "train"
        self._fixed = [] if self.endless else self._distinct(count)

    def _draw(self, index: int) -> Problem:
        rng = random.Random(f"{self._seed}-{self._name}-{self._split}-{index}")
        for _ in range(_PATIENCE):
            text, answer = self._generate(rng, self._digits)
            if is_held_out(text) == (self._split == "eval"):
                return Problem(f"{self._name}-{self._split}-{index}", text, str(answer))
        raise ConfigError(f"the task {self._name} with digits = {self._digits} has no problem for {self._split}; raise digits")

    def _distinct(self, count: int) -> list[Problem]:
        found: dict[str, Problem] = {}
        newest = 0
        for index in range(count * 8):
            # With few digits, a task may have fewer problems than `count`.
            if len(found) == count or index - newest > _PATIENCE + 8 * len(found):
                break
            problem = self._draw(index)
            if problem.problem not in found:
                found[problem.problem], newest = problem, index
        return list(found.values())

    def __len__(self) -> int:
        return 2**31 if self.endless else len(self._fixed)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | Sequence[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._draw(index) if self.endless else self._fixed[index]
