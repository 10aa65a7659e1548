"""The uncertainty of a mean over problems: parts of its standard error, a bootstrap over problems, a paired test.

P problems, K samples of each. Samples of one problem are not independent, so problems are resampled, not samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_DRAWS = 10_000
_FLIPS = 20_000
# Up to this many differences, all 2^n combinations of signs are tried.
_EXACT_UP_TO = 16
_ROWS_AT_ONCE = 1000

Values = Float[np.ndarray, " P"]


@dataclass(frozen=True, slots=True)
class StandardError:
    """The standard error of a mean over P problems × K samples: `total`² = `samples`² + `problems`².

    `samples`: the part from the sampling of responses. `problems`: the part from the choice of problems, 0 if the data vary
    less than sampling alone explains. Both are None for one sample; `total` is 0.0 for one problem.
    """

    total: float
    samples: float | None
    problems: float | None


def standard_error(scores: Float[np.ndarray, "P K"]) -> StandardError:
    """The standard error of the mean of 0/1 (or graded) scores, and its two parts."""
    problems, samples = scores.shape
    means = scores.mean(axis=1)
    total = float(means.std(ddof=1) / np.sqrt(problems)) if problems > 1 else 0.0
    if samples == 1:
        return StandardError(total, None, None)
    within = float(np.sqrt(scores.var(axis=1, ddof=1).sum() / samples) / problems)
    return StandardError(total, within, float(np.sqrt(max(total**2 - within**2, 0.0))))


def bootstrap_means(values: Values, seed: int = 0, draws: int = _DRAWS) -> Float[np.ndarray, " B"]:
    """Means of `draws` resamples of the problems, with replacement; equal for equal seeds."""
    rng = np.random.default_rng(seed)
    count = len(values)
    parts = []
    for first in range(0, draws, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, draws - first)
        parts.append(values[rng.integers(0, count, (rows, count))].mean(axis=1))
    return np.concatenate(parts)


def interval(sets: Sequence[Values], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of the sets' means. Each set is resampled by itself."""
    means = np.mean([bootstrap_means(values, seed) for seed, values in enumerate(sets)], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip_p_value(sets: Sequence[Values], seed: int = 0) -> float:
    """Two-sided p-value of paired differences: how often random signs give a mean at least as far from 0.

    The statistic is the mean of the sets' means. Exact up to 16 non-zero differences, otherwise from 20,000 random draws and
    the observed signs.
    """
    weighted = np.concatenate([values / len(values) for values in sets])
    weighted = weighted[weighted != 0]
    count = len(weighted)
    # Sums in a different order differ in the last bits.
    threshold = abs(weighted.sum()) * (1 - 1e-9)
    if count <= _EXACT_UP_TO:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float((np.abs((2 * bits - 1) @ weighted) >= threshold).mean())
    rng = np.random.default_rng(seed)
    as_far = 0
    for _ in range(0, _FLIPS, _ROWS_AT_ONCE):
        signs = 2 * rng.integers(0, 2, (_ROWS_AT_ONCE, count), dtype=np.int8) - 1
        as_far += int((np.abs(signs @ weighted) >= threshold).sum())
    return (as_far + 1) / (_FLIPS + 1)
