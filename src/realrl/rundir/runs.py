"""Run folders as they lie on disk: nothing missing, torn or odd in one stops the reading; and which are seeds of one recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.config import Config, flatten, load_config, read_toml
from realrl.errors import ConfigError, DataError
from realrl.rundir.alarms import read_alarms
from realrl.rundir.metrics import read_records
from realrl.rundir.paths import RunPaths
from realrl.rundir.segments import Change, changes_between, earlier_recipes

# Columns of saved rollouts and evaluations that are no text.
_NUMBERS = {"step", "group", "reward", "score", "weight", "tokens", "truncated"}
_LISTS = {"token_ids", "log_ratio"}

# What runs may differ in and still be seeds of one recipe.
_NOT_THE_RECIPE = ("run.dir", "run.seed", "run.threads", "log.", "checkpoint.")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What one run left behind.

    `config` has dotted keys; `metrics` holds, for each name, the finite values by step, in the order of steps; `times` the Unix
    seconds of every record; `environment` one entry for each start (rundir/environment.py); `alarms` pairs of step and text;
    `broken` the lines of metrics.jsonl that are no record, but for a last one that a crash tore or that is being written;
    `earlier` the recipes of a run that was resumed with another one, each with its last step, dotted keys too.
    """

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, dict[int, float]]
    times: list[float]
    environment: list[dict[str, Any]]
    alarms: list[tuple[int, str]]
    broken: list[int]
    earlier: list[tuple[int, dict[str, Any]]]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def steps(self) -> int:
        """Finished sampling rounds."""
        return max((max(values) for values in self.metrics.values()), default=0)

    @property
    def evaluated(self) -> list[str]:
        """Held-out sets whose sampled accuracy was recorded."""
        start, end = "eval/", "/sampled/accuracy"
        return sorted(
            name.removeprefix(start).removesuffix(end) for name in self.metrics if name.startswith(start) and name.endswith(end)
        )

    @property
    def changes(self) -> list[Change]:
        """Keys of the recipe that a resumed start changed."""
        return changes_between(self.earlier, self.config)

    def series(self, name: str) -> dict[int, float]:
        """Step → value of one metric; empty where it was never recorded."""
        return self.metrics.get(name, {})

    def recipe(self) -> Config:
        """The validated recipe; ConfigError where this version of realrl has other keys."""
        return load_config(RunPaths(self.folder).config)

    def rollout_files(self) -> list[tuple[int, Path]]:
        """(step, file) in the order of steps."""
        return RunPaths(self.folder).rollout_files()

    def rollouts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """One table for each saved step, of those `columns` that it has, in the order of steps. DataError if unreadable."""
        for _, path in self.rollout_files():
            try:
                yield pq.read_table(path, columns=present(pq.read_schema(path), columns))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs of one recipe that differ by run.seed alone, under a label that sets the recipe apart from the others."""

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def config(self) -> dict[str, Any]:
        """That of the first run, with dotted keys."""
        return self.runs[0].config


def read_run(folder: Path) -> RunRecord:
    """The run in `folder`, which may have only begun; DataError for a folder that no run made."""
    paths = RunPaths(folder)
    try:
        config = read_toml(paths.config)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is no run folder: it has no config.toml" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; give the folder that run.dir of the recipe named") from error
    except (OSError, ConfigError) as error:
        raise DataError(f"{paths.config} cannot be read: {error}") from error
    _check_links(folder)
    try:
        earlier = [(step, flatten(recipe)) for step, recipe in earlier_recipes(folder)]
    except (OSError, ConfigError) as error:
        raise DataError(f"a former recipe of {folder} cannot be read: {error}") from error
    metrics: dict[str, dict[int, float]] = {}
    times = []
    records, broken = read_records(paths.metrics)
    for record in sorted(records, key=lambda record: record["step"]):
        step = record["step"]
        for name, value in record.items():
            number = as_number(value)
            if name == "step" or number is None:
                continue
            if name == "time":
                times.append(number)
            else:
                metrics.setdefault(name, {})[step] = number
    return RunRecord(
        folder, flatten(config), metrics, sorted(times), _environment(paths), read_alarms(paths.alarms), broken, earlier
    )


def group_runs(runs: Sequence[RunRecord]) -> list[RunGroup]:
    """Runs by recipe, in the order given; raises ConfigError for two runs of one recipe and one seed."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        members = groups.setdefault(json.dumps([_recipe(run.config), *_before(run)], sort_keys=True, default=str), [])
        for member in members:
            seed = run.config.get("run.seed")
            if member.config.get("run.seed") == seed:
                raise ConfigError(
                    f"{member.folder} and {run.folder} have the same recipe and run.seed = {seed}; two of one "
                    "seed are not independent: leave one out"
                )
        members.append(run)
    labels = _labels([members[0].config for members in groups.values()])
    return [
        RunGroup(", ".join([label, *(f"changed after step {step}" for step, _ in _before(members[0]))]), tuple(members))
        for label, members in zip(labels, groups.values(), strict=True)
    ]


def broken_lines(run: RunRecord) -> str:
    """What `run.broken` left out of the curves, for a reader."""
    rest = f" and {len(run.broken) - 1} more" if len(run.broken) > 1 else ""
    return f"line {run.broken[0]}{rest} of {RunPaths(run.folder).metrics}: no record of a step"


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the recipe in which `configs` are not all alike."""
    keys = dict.fromkeys(key for config in configs for key in _recipe(config))
    return [key for key in keys if len({as_text(config.get(key)) for config in configs}) > 1]


def as_text(value: object) -> str:
    """A value of a recipe as its file has it, without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list[Any]] | None:
    """Those of `columns` that the file has; None for a file that is gone or cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=present(file.schema_arrow, columns)).to_pydict()
    except (OSError, pa.ArrowException, ValueError):
        return None


def present(schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    """Those of `columns` that a file has, once and as what the recorder writes: numbers, lists of numbers, else text."""
    return [name for name in columns if schema.names.count(name) == 1 and _fits(name, schema.field(name).type)]


def _fits(name: str, kind: pa.DataType) -> bool:
    if name in _LISTS:
        return pa.types.is_list(kind) and _is_number(kind.value_type)
    if name in _NUMBERS:
        return _is_number(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def as_number(value: object) -> float | None:
    """A finite number that a float can hold; None for anything else."""
    if not isinstance(value, int | float) or not abs(value) < 1e300:
        return None
    return float(value)


def _check_links(folder: Path) -> None:
    """DataError for a link in a run that leads out of it: what a report shows, and may be sent on, is of the run alone.

    A folder of the run may be a link itself, to another disk.
    """
    places = folder, RunPaths(folder).rollouts, RunPaths(folder).evaluations
    inside = [place.resolve() for place in places]
    for place in places:
        for path in place.iterdir() if place.is_dir() else ():
            if path.is_symlink() and not path.is_dir() and not any(path.resolve().is_relative_to(root) for root in inside):
                raise DataError(f"{path} is a link to a file outside of the run; put a copy in its place")


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


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(_NOT_THE_RECIPE)}


def _before(run: RunRecord) -> list[tuple[int, dict[str, Any]]]:
    """The earlier recipes of a run that differ from its newest in more than seeds may."""
    return [(step, found) for step, recipe in run.earlier if (found := _recipe(recipe)) != _recipe(run.config)]


def _labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for each recipe: the objective, and what differs among recipes of the same objective."""
    labels = []
    for config in configs:
        kind = str(config.get("objective.type", "run"))
        peers = [other for other in configs if other.get("objective.type") == config.get("objective.type")]
        keys = [key for key in differing(peers) if key in config]
        # The last part of a key says enough unless another key ends alike.
        short = {key: key if sum(k.rpartition(".")[2] == key.rpartition(".")[2] for k in keys) > 1 else key.rpartition(".")[2]
                 for key in keys}  # fmt: skip
        labels.append(", ".join([kind, *(f"{short[key]} = {as_text(config[key])}" for key in keys)]))
    return labels


def _environment(paths: RunPaths) -> list[dict[str, Any]]:
    try:
        entries = json.loads(paths.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [_start(entry) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _start(entry: dict[str, Any]) -> dict[str, Any]:
    """One entry of environment.json, with `started`, `gpus` and `packages` of the types that they are written with."""
    gpus, packages = entry.get("gpus"), entry.get("packages")
    return entry | {
        "started": as_number(entry.get("started")),
        "gpus": gpus if isinstance(gpus, list) else [],
        "packages": packages if isinstance(packages, dict) else {},
    }
