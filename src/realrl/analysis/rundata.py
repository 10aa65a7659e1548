"""Run folders as data: the recipe, the metrics and the rollouts of each, and which runs differ by their seed alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realrl.config import Config, load_config
from realrl.errors import ConfigError, DataError

# What a run may differ in and still be another seed of the same recipe.
_NOT_THE_RECIPE = {"run": {"dir", "seed", "threads"}, "log": True, "checkpoint": True}


@dataclass(frozen=True, slots=True)
class RunData:
    """A run folder that was read: its resolved recipe and the records of metrics.jsonl in their order."""

    folder: Path
    config: Config
    records: tuple[dict[str, Any], ...]

    def series(self, metric: str) -> dict[int, float]:
        """Step → value of one metric, in the order of steps; empty where it was never recorded."""
        found = {int(record["step"]): float(record[metric]) for record in self.records if metric in record}
        return dict(sorted(found.items()))

    @property
    def evaluated(self) -> list[str]:
        """Held-out sets of which metrics.jsonl has the sampled accuracy."""
        marks = "eval/", "/sampled/accuracy"
        keys = {key for record in self.records for key in record if key.startswith(marks[0]) and key.endswith(marks[1])}
        return sorted(key.removeprefix(marks[0]).removesuffix(marks[1]) for key in keys)

    def rollouts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """One table for each saved step, of those `columns` that it has, in the order of steps. DataError if unreadable."""
        for path in sorted((self.folder / "rollouts").glob("step_*.parquet")):
            try:
                present = set(pq.read_schema(path).names)
                yield pq.read_table(path, columns=[name for name in columns if name in present])
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs of one recipe that differ by run.seed alone, under a label that sets the recipe apart from the others."""

    label: str
    runs: tuple[RunData, ...]

    @property
    def config(self) -> Config:
        return self.runs[0].config


def read_run(folder: str | Path) -> RunData:
    """A run folder; a last line of metrics.jsonl that a crash tore, or that is being written, is left out.

    Raises ConfigError where config.toml is missing or not valid, DataError where metrics.jsonl is missing or broken elsewhere.
    """
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.toml; give the folder that run.dir named")
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{path} does not exist: the run stopped before its first step, or the file was moved away")
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "step" not in record:
                raise ValueError("it is no object with a step")
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number} of {len(lines)} is broken: {error}; remove the line") from error
        records.append(record)
    return RunData(folder, load_config(folder / "config.toml"), tuple(records))


def group_runs(runs: Sequence[RunData]) -> list[RunGroup]:
    """Runs by recipe, in the order given; raises ConfigError for two runs of one recipe and one seed."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        key = json.dumps(run.config.model_dump(mode="json", exclude=_NOT_THE_RECIPE), sort_keys=True)  # pyright: ignore[reportArgumentType]
        members = groups.setdefault(key, [])
        for member in members:
            if member.config.run.seed == run.config.run.seed:
                raise ConfigError(
                    f"{member.folder} and {run.folder} have the same recipe and run.seed = {run.config.run.seed}; two of one "
                    "seed are not independent: leave one out"
                )
        members.append(run)
    recipes = [_flat(json.loads(key)) for key in groups]
    labels = [_label(recipe, recipes) for recipe in recipes]
    return [RunGroup(label, tuple(members)) for label, members in zip(labels, groups.values(), strict=True)]


def _label(recipe: dict[str, Any], recipes: list[dict[str, Any]]) -> str:
    """The objective's name, and the keys in which it differs from other recipes of the same objective."""
    name = recipe["objective.type"]
    rivals = [other for other in recipes if other["objective.type"] == name]
    keys = sorted({key for other in rivals for key in other.keys() | recipe.keys() if other.get(key) != recipe.get(key)})
    return " ".join([name, *(f"{key.removeprefix('objective.')}={recipe.get(key, '-')}" for key in keys)])


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
