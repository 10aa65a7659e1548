"""Count tokens by their ratio ρ = π_θ/π_old and the sign of the advantage: the data of the paper's Figure 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.rundir.runs import present

_COLUMNS = ("group", "reward", "log_ratio")

# Edges of the intervals of ρ. The clip's edges, 1 ± 0.2, count as not clipped, as in the objectives.
BELOW, ABOVE = (0.5, 0.8, 0.95), (1.05, 1.2, 1.5, 2.0)
EPSILON = 0.2
INTERVALS = ("< 0.5", "0.5–0.8", "0.8–0.95", "0.95–1.05", "1.05–1.2", "1.2–1.5", "1.5–2", "> 2")
CLIPS = ("one-sided", "bidirectional")


@dataclass(frozen=True, slots=True)
class RatioCounts:
    """Numbers of tokens in each interval of ρ, and dropped by each kind of clipping; first axis: A > 0, A < 0."""

    intervals: np.ndarray
    dropped: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        return self.intervals.sum(axis=1)


def ratio_counts(tables: Iterator[pa.Table]) -> RatioCounts | None:
    """Count the tokens of saved rollouts; None if their log-ratios were not saved.

    The sign is that of reward − mean reward of the group. Groups with equal rewards have advantage 0 and are left out.
    """
    intervals, dropped = np.zeros((2, len(INTERVALS)), dtype=np.int64), np.zeros((2, len(CLIPS)), dtype=np.int64)
    found = False
    for table in tables:
        if not set(_COLUMNS) <= set(table.column_names):
            continue
        found = True
        column = table["log_ratio"].combine_chunks()
        lengths = np.diff(column.offsets.to_numpy())
        ratio = np.exp(column.flatten().to_numpy(zero_copy_only=False).astype(np.float64))
        sign = np.repeat(_advantage_signs(table), lengths)
        for row, wanted in enumerate((1, -1)):
            rho = ratio[sign == wanted]
            places = np.searchsorted(BELOW, rho, side="right") + np.searchsorted(ABOVE, rho, side="left")
            intervals[row] += np.bincount(places, minlength=len(INTERVALS))
            high, low = int((rho > 1 + EPSILON).sum()), int((rho < 1 - EPSILON).sum())
            dropped[row] += [high if wanted > 0 else low, high + low]
    return RatioCounts(intervals, dropped) if found else None


def token_ratios(path: Path) -> RatioCounts | None:
    """Count the tokens of one file; None if their ratios were not recorded. Results are cached until the file changes."""
    try:
        return _token_ratios(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=20_000)
def _token_ratios(path: Path, modified: int) -> RatioCounts | None:
    try:
        with pq.ParquetFile(path) as file:
            return ratio_counts(iter([file.read(columns=present(file.schema_arrow, _COLUMNS))]))
    except (OSError, pa.ArrowException, ValueError):
        return None


def _advantage_signs(table: pa.Table) -> np.ndarray:
    _, index = np.unique(table["group"].to_numpy(), return_inverse=True)
    rewards = table["reward"].to_numpy().astype(np.float64)
    advantages = rewards - (np.bincount(index, rewards) / np.bincount(index))[index]
    return np.where(np.abs(advantages) < 1e-9, 0, np.sign(advantages)).astype(int)
