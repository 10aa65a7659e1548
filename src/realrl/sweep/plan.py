"""Read a sweep file (a base recipe and the changes of each run) into a list of runs with names and complete configs."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from realrl.config import Config, flatten, load_config, read_toml
from realrl.errors import ConfigError

Values = Annotated[tuple[Any, ...], Field(min_length=1)]
Seeds = Annotated[tuple[int, ...], Field(min_length=1)]
# The only key of a variant that is not a key of a recipe.
TUNED_AS = "tuned_as"
_MAX_POINTS = 10_000
# Maximum number of characters of a run's name, which also names its log and its recipe.
_MAX_NAME = 200


class TuneSection(BaseModel):
    """Tune one key: each variant gets the value with the best held-out accuracy over `seeds`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    values: Values
    seeds: Seeds


class SweepFile(BaseModel):
    """The content of a sweep file. Tables of overrides contain keys of the recipe, dotted or nested."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: str = Field(description="the recipe that every run starts from, relative to this file")
    dir: str = Field(description="folder of the run folders")
    seeds: Seeds = (0,)
    set: dict[str, Any] = Field(default={}, description="overrides for all runs")
    variants: dict[str, dict[str, Any]] | str = Field(default={}, description="name → overrides; or a file that contains them")
    grid: dict[str, Any] = Field(default={}, description="key → list of values; every combination gets a run")
    tune: TuneSection | None = None
    reference: str | None = Field(default=None, description="the setting that the others are compared with in tables")
    checkpoints: bool = Field(default=True, description="false: a finished run's checkpoints are removed")

    @model_validator(mode="after")
    def _one_way_to_vary(self) -> SweepFile:
        if self.grid and self.tune:
            raise ValueError("grid and tune cannot be used together; write the grid's points as variants")
        return self


@dataclass(frozen=True, slots=True)
class Setting:
    """A variant at a point of the grid. `tuned_as` names the variant whose tuned value it uses."""

    name: str
    overrides: Mapping[str, str]
    tuned_as: str | None


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run: its folder is `config.run.dir`, which ends with `name`. `value` is the value of the tuned key, as TOML."""

    name: str
    setting: str
    seed: int
    value: str | None
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)


class Plan:
    """The runs of a sweep in order: seed by seed, so that an unfinished sweep already allows a comparison."""

    def __init__(self, path: Path, file: SweepFile, variants: Mapping[str, Mapping[str, Any]]) -> None:
        self.path = path
        self.file = file
        self.dir = Path(file.dir)
        self._base = path.parent / file.base
        self._common = _texts(file.set)
        self.settings = _settings(path, file, variants)
        if file.reference is not None and file.reference not in self.settings:
            raise ConfigError(
                f"{path}: reference = {file.reference!r} is not a setting of the sweep{_near(file.reference, self.settings)}"
            )
        _check_names(path, [*(run.name for run in self.tuning), *(self._final_name(*pair) for pair in self._finals)])

    @cached_property
    def tuning(self) -> tuple[PlannedRun, ...]:
        """The runs that find the values of the tuned key; none without `tune`."""
        tune = self.file.tune
        if tune is None:
            return ()
        tuned = [setting for setting in self.settings.values() if setting.tuned_as == setting.name]
        return tuple(
            self._run(f"tune-{setting.name}-{_label(tune.key)}{_safe(value)}-seed{seed}", setting, seed, value)
            for seed, setting, value in itertools.product(tune.seeds, tuned, map(_text, tune.values))
        )

    def final(self, chosen: Mapping[str, str | None]) -> tuple[PlannedRun, ...]:
        """The runs to compare. `chosen` maps a variant to its value of the tuned key; variants without one are left out."""
        runs = []
        for seed, setting in self._finals:
            value = chosen.get(setting.tuned_as) if setting.tuned_as else None
            if setting.tuned_as is None or value is not None:
                runs.append(self._run(self._final_name(seed, setting), setting, seed, value))
        return tuple(runs)

    @property
    def final_names(self) -> tuple[str, ...]:
        """The names of all runs to compare, including those whose tuned value is not known yet."""
        return tuple(self._final_name(*pair) for pair in self._finals)

    @property
    def _finals(self) -> list[tuple[int, Setting]]:
        return list(itertools.product(self.file.seeds, self.settings.values()))

    @staticmethod
    def _final_name(seed: int, setting: Setting) -> str:
        return f"{setting.name}-seed{seed}"

    def _run(self, name: str, setting: Setting, seed: int, value: str | None) -> PlannedRun:
        tuned = {self.file.tune.key: value} if self.file.tune and value is not None else {}
        overrides = {
            **self._common,
            **setting.overrides,
            **tuned,
            "run.seed": str(seed),
            "run.dir": _text(str(self.dir / name)),
        }
        try:
            config = load_config(self._base, overrides)
        except ConfigError as error:
            raise ConfigError(f"{self.path}, run {name}: {error}") from error
        if tuned and not config.data.eval:
            raise ConfigError(f"{self.path}: tune needs held-out accuracy, but data.eval is empty; name a data set there")
        return PlannedRun(name, setting.name, seed, value, config)


def load_sweep(path: str | Path) -> Plan:
    """Read a sweep file and check the config of each run.

    Raises ConfigError for a missing file, invalid TOML, an unknown key (with a suggestion), or a run with a wrong recipe.
    """
    path = Path(path)
    document = _read(path, "sweep file")
    try:
        file = SweepFile.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(map(_describe, error.errors()))}") from error
    variants = file.variants
    if isinstance(variants, str):
        variants = _read(path.parent / variants, f"file of variants (named by {path})")
    plan = Plan(path, file, variants)
    # Check the configs of the runs to compare before hours of tuning, with any value of the tuned key.
    plan.final({run.setting: run.value for run in plan.tuning})
    return plan


def _settings(path: Path, file: SweepFile, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Setting]:
    grid = flatten(file.grid)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: grid.{key} = {values!r} must be a list with at least one value")
    if math.prod(map(len, grid.values())) > _MAX_POINTS:
        raise ConfigError(f"{path}: the grid has more than {_MAX_POINTS} points; give it fewer values")
    points = list(itertools.product(*([(key, _text(value)) for value in values] for key, values in grid.items())))
    short = Counter(map(_label, grid))
    settings: dict[str, Setting] = {}
    for variant, table in (variants or {"": {}}).items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{path}: variant {variant} must be a table of overrides, not {table!r}")
        table = dict(table)
        tuned_as = _tuned_as(path, file, variant, variants, table.pop(TUNED_AS, variant))
        for point in points:
            parts = [f"{_label(key) if short[_label(key)] == 1 else key}{_safe(value)}" for key, value in point]
            name = "-".join(filter(None, [_safe(variant), *parts])) or "run"
            if name in settings:
                raise ConfigError(f"{path}: two settings have the same folder name {name}; give them different names")
            settings[name] = Setting(name, {**_texts(table), **dict(point)}, tuned_as and _safe(tuned_as))
    return settings


def _tuned_as(path: Path, file: SweepFile, variant: str, variants: Mapping[str, Mapping[str, Any]], other: Any) -> str | None:
    if file.tune is None:
        return None
    if other != variant and (other not in variants or TUNED_AS in variants[other]):
        tuned = [name for name, table in variants.items() if TUNED_AS not in table]
        raise ConfigError(f"{path}: {variant}.{TUNED_AS} = {other!r} is not a tuned variant{_near(str(other), tuned)}")
    return other or "run"


def _check_names(path: Path, names: list[str]) -> None:
    # On macOS, names that differ only in case are the same folder.
    twice = [name for name, count in Counter(map(str.casefold, names)).items() if count > 1]
    if twice:
        raise ConfigError(f"{path}: two runs would share the folder {twice[0]} (case is ignored); rename one")
    longest = max(names, key=len)
    if len(longest) > _MAX_NAME:
        raise ConfigError(f"{path}: the name {longest[:80]}… is too long for a folder; shorten the variant or the values")


def _read(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no {what} at {path}{_near(path.name, [other.name for other in path.parent.glob('*.toml')])}")
    return read_toml(path)


def _describe(fault: Any) -> str:
    dotted = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        model = TuneSection if len(fault["loc"]) > 1 else SweepFile
        return f"unknown key {dotted}{_near(str(fault['loc'][-1]), model.model_fields)}"
    if fault["type"] == "missing":
        return f"missing key {dotted}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{dotted} = {fault['input']!r}: {message}" if dotted else message


def _near(name: str, known: Any) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}" if known else ""


def _texts(table: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(value) for key, value in flatten(table).items()}


def _text(value: Any) -> str:
    """A value as TOML, as in an override on the command line."""
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")


def _label(key: str) -> str:
    return key.rpartition(".")[2]


def _safe(text: str) -> str:
    """The text as part of a folder name: only letters, digits and . _ -"""
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).strip("_.")
