"""Estimators of accuracy from repeated samples."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from c right of n: 1 − C(n−c, k)/C(n, k).

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n. Source: Chen et al. 2021, arXiv 2107.03374.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k got n = {n}, c = {c}, k = {k}; it needs 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_and_standard_error(per_problem: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean over problems of the mean over their samples, and its standard error over problems (0.0 for one problem).

    Samples of one problem are not independent, so the error is that of the problem means.
    """
    means = [sum(samples) / len(samples) for samples in per_problem]
    count = len(means)
    mean = sum(means) / count
    if count == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in means) / (count - 1) / count)
