"""A run folder as it lies on disk, read so that nothing missing, torn or odd in it stops a report."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.errors import DataError

if TYPE_CHECKING:
    from realrl.analysis.distributions import RatioCounts

_STEP = re.compile(r"step_(\d+)\.parquet")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What one run left behind.

    `config` has dotted keys; `metrics` holds, for each name, the finite values by step; `times` the Unix seconds of every
    record; `environment` one entry for each start (train/environment.py); `alarms` pairs of step and text.
    """

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, dict[int, float]]
    times: list[float]
    environment: list[dict[str, Any]]
    alarms: list[tuple[int, str]]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def steps(self) -> int:
        """Finished sampling rounds."""
        return max((max(values) for values in self.metrics.values()), default=0)

    def rollout_files(self) -> list[tuple[int, Path]]:
        """(step, file) in the order of steps."""
        found = ((_STEP.fullmatch(path.name), path) for path in self.folder.glob("rollouts/step_*.parquet"))
        return sorted((int(match[1]), path) for match, path in found if match)


def read_run(folder: Path) -> RunRecord:
    """The run in `folder`; DataError for a folder that no run made.

    Unlike rundata.read_run it takes a run that has only begun, a metrics.jsonl with broken lines and an older recipe.
    """
    try:
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is no run folder: it has no config.toml" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; give the folder that run.dir of the recipe named") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / 'config.toml'} cannot be read: {error}") from error
    metrics: dict[str, dict[int, float]] = {}
    times = []
    for record in _json_lines(folder / "metrics.jsonl"):
        step = record.get("step")
        if not isinstance(step, int):
            continue
        for name, value in record.items():
            if name == "step" or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if name == "time":
                times.append(float(value))
            else:
                metrics.setdefault(name, {})[step] = float(value)
    return RunRecord(folder, flatten(config), metrics, times, _environment(folder), _alarms(folder))


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optim": {"lr": 1}}` as `{"optim.lr": 1}`; an empty table is left out."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list[Any]] | None:
    """Those of `columns` that the file has; None for a file that is gone or cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            return file.read(columns=names).to_pydict()
    except (OSError, pa.ArrowException):
        return None


def rollout_numbers(path: Path) -> dict[str, np.ndarray] | None:
    """`score`, `weight` and `reward` of a step's rollouts; kept, so that a live view reads each file once."""
    try:
        return _rollout_numbers(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=20_000)
def _rollout_numbers(path: Path, modified: int) -> dict[str, np.ndarray] | None:
    columns = read_columns(path, ("score", "weight", "reward"))
    if columns is None or len(columns) < 3:
        return None
    return {name: np.array(values, dtype=float) for name, values in columns.items()}


def token_ratios(path: Path) -> RatioCounts | None:
    """Counts of a step's tokens by their ratio ρ; None where they were not recorded. Kept, as `rollout_numbers` are."""
    try:
        return _token_ratios(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=20_000)
def _token_ratios(path: Path, modified: int) -> RatioCounts | None:
    try:
        with pq.ParquetFile(path) as file:
            if not {"group", "reward", "log_ratio"} <= set(file.schema_arrow.names):
                return None
            from realrl.analysis.distributions import ratio_counts

            return ratio_counts(iter([file.read(columns=["group", "reward", "log_ratio"])]))
    except (OSError, pa.ArrowException):
        return None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a line that is none (torn by a crash, or still being written) is passed over."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _environment(folder: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _alarms(folder: Path) -> list[tuple[int, str]]:
    try:
        lines = (folder / "alarms.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    matches = (re.fullmatch(r"step (\d+): (?:ALARM: )?(.*)", line) for line in lines)
    return [(int(match[1]), match[2]) for match in matches if match]
