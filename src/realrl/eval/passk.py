"""Estimators of accuracy from repeated samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is right, from c right of n: 1 − C(n−c, k)/C(n, k).

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n. Source: Chen et al. 2021, arXiv 2107.03374.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k got n = {n}, c = {c}, k = {k}; it needs 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority(
    answers: Sequence[str | None], right: Sequence[bool], same: Callable[[str, str], bool] = lambda a, b: a == b
) -> float:
    """1 if the most frequent answer to one problem is right, otherwise 0; a tie of k answers counts 1/k.

    None is no vote, and without any vote the value is 0. Right answers are one class; `same` groups the wrong ones.
    """
    votes_right = sum(right)
    classes: list[tuple[str, int]] = []
    for answer, is_right in zip(answers, right, strict=True):
        if answer is None or is_right:
            continue
        index = next((i for i, (other, _) in enumerate(classes) if other == answer or same(other, answer)), None)
        if index is None:
            classes.append((answer, 1))
        else:
            classes[index] = (classes[index][0], classes[index][1] + 1)
    most = max([votes_right, *(votes for _, votes in classes)])
    if votes_right < most or most == 0:
        return 0.0
    return 1 / (1 + sum(votes == most for _, votes in classes))
