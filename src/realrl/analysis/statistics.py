"""What a few seeds can tell: Student's t for their mean, for paired differences, and Holm's correction for several tests."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# The limit of `t_quantile` for many degrees of freedom.
NORMAL = 1.96
_POINTS = 100_001


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its 95 % interval; None where a single value cannot tell."""

    value: float
    low: float | None
    high: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of independent values, taken to be normal, by Student's t with n − 1 degrees of freedom."""
    mean, error = _moments(values)
    if error is None:
        return Mean(mean, None, None)
    half = t_quantile(len(values) - 1) * error
    return Mean(mean, mean - half, mean + half)


@functools.cache
def t_quantile(degrees: int) -> float:
    """How many standard errors a two-sided 95 % interval reaches: Student's t with `degrees` ≥ 1 degrees of freedom."""
    angles, within = _within(degrees)
    return math.sqrt(degrees) * math.tan(float(np.interp(0.95, within, angles)))


def p_value_of_zero(values: Sequence[float]) -> float | None:
    """Two-sided p-value of the t-test that the mean is 0; None for a single value. Equal values: 1 if they are 0, else 0."""
    mean, error = _moments(values)
    if error is None:
        return None
    return _tails(mean / error, len(values) - 1) if error else float(mean == 0)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values adjusted for being several (Holm's step-down); None stays None and is not counted."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(p * (len(order) - rank), 1.0))
        adjusted[index] = largest
    return adjusted


def _moments(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error."""
    sample = np.asarray(values, dtype=float)
    return float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(sample)) if len(sample) > 1 else None


def _within(degrees: int) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Angles θ from 0 to π/2 and P(|T| ≤ √ν tan θ): in θ Student's density is proportional to cos^(ν−1) θ."""
    angles = np.linspace(0, math.pi / 2, _POINTS)
    density = np.cos(angles).clip(min=0) ** (degrees - 1)
    parts = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angles, parts / parts[-1]


def _tails(t: float, degrees: int) -> float:
    angles, within = _within(degrees)
    return 1 - float(np.interp(math.atan(abs(t) / math.sqrt(degrees)), angles, within))
