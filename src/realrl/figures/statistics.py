"""Statistics for a few seeds: Student's t for a mean or paired differences, and Holm's correction for several tests."""

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
    """A mean with its 95 % interval; the ends are None for a single value."""

    value: float
    low: float | None
    high: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of independent, normally distributed values, with an interval by Student's t (n − 1 degrees of freedom)."""
    sample = np.asarray(values, dtype=float)
    mean, half = float(sample.mean()), half_width(sample)
    return Mean(mean, None, None) if half is None else Mean(mean, mean - float(half), mean + float(half))


def half_width(values: np.ndarray) -> np.ndarray | None:
    """Half the width of the 95 % t-interval of the mean over the first axis; None if it has one value."""
    count = len(values)
    if count < 2:
        return None
    return t_quantile(count - 1) * (values.std(axis=0, ddof=1) / np.sqrt(count))


@functools.cache
def t_quantile(degrees: int) -> float:
    """Half the width of a two-sided 95 % interval in standard errors, for Student's t with `degrees` ≥ 1."""
    angles, within = _within(degrees)
    return math.sqrt(degrees) * math.tan(float(np.interp(0.95, within, angles)))


def p_value_of_zero(values: Sequence[float]) -> float | None:
    """Two-sided p-value of the t-test that the mean is 0; None for a single value. Equal values give 1 if 0, else 0."""
    if len(values) < 2:
        return None
    sample = np.asarray(values, dtype=float)
    mean, error = float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return _tails(mean / error, len(values) - 1) if error else float(mean == 0)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values, adjusted for several tests by Holm's step-down method; None stays None and is not counted."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(p * (len(order) - rank), 1.0))
        adjusted[index] = largest
    return adjusted


def _within(degrees: int) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Angles θ from 0 to π/2 and P(|T| ≤ √ν tan θ); as a function of θ, Student's density is proportional to cos^(ν−1) θ."""
    angles = np.linspace(0, math.pi / 2, _POINTS)
    density = np.cos(angles).clip(min=0) ** (degrees - 1)
    parts = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angles, parts / parts[-1]


def _tails(t: float, degrees: int) -> float:
    angles, within = _within(degrees)
    return 1 - float(np.interp(math.atan(abs(t) / math.sqrt(degrees)), angles, within))
