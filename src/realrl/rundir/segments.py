"""The recipes of a run: config.toml is that of its newest rounds; a run resumed with another recipe keeps the earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from realrl.config import Config, dump_config, flatten, load_config, read_toml
from realrl.errors import ConfigError
from realrl.rundir.paths import RunPaths
from realrl.system.files import write_whole

# Keys that decide the task, the measure or the model: rounds before and after a change of one cannot be compared.
_COMPARED = (
    "run.seed",
    "model.path",
    "model.quantize",
    "data.",
    "reward.",
    "sampling.group_size",
    "objective.",
    "eval.problems",
)
_NOT_COMPARED = ("data.strict", "reward.workers", "reward.timeout_s", "reward.memory_mib")


class Change(NamedTuple):
    """A key of the recipe whose value changes after round `step`; None where the recipe has no such key."""

    step: int
    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} = {self.before!r} → {self.after!r}"


def earlier_recipes(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """(last step, recipe) of each segment of the run but the newest, in order. ConfigError for a file that cannot be read."""
    return [(step, read_toml(path)) for step, path in RunPaths(folder).earlier_configs()]


def changes_between(recipes: Sequence[tuple[int, Mapping[str, Any]]], newest: Mapping[str, Any]) -> list[Change]:
    """What differs from each recipe to the next, up to `newest`; without `run.dir`, because a run folder may be moved."""
    flat = [flatten(recipe) for recipe in (*(recipe for _, recipe in recipes), newest)]
    return [
        Change(step, key, before.get(key), after.get(key))
        for (step, _), before, after in zip(recipes, flat, flat[1:], strict=False)
        for key in before | after
        if before.get(key) != after.get(key) and key != "run.dir"
    ]


def check_comparable(folder: Path, step: int, config: Config, *, force: bool) -> list[Change]:
    """What a run that goes on after `step` changes in its recipe.

    Raises ConfigError where steps before and after could not be compared, unless `force` is given.
    """
    changes = _changes(folder, step, config)
    grave = [change for change in changes if change.key.startswith(_COMPARED) and change.key not in _NOT_COMPARED]
    if grave and not force:
        raise ConfigError(
            f"the run in {folder} was made with another recipe: {'; '.join(map(str, grave))}; its steps before and after would "
            "not be comparable: give the same values, choose another --run.dir, or go on all the same with --force"
        )
    return changes


def write_recipe(folder: Path, step: int, config: Config) -> None:
    """Make `config` the recipe of the rounds after `step`, and keep the recipe before it if that differs. Raises OSError.

    A call that was killed anywhere and is made again has the same result.
    """
    paths = RunPaths(folder)
    stale = [path for last, path in paths.earlier_configs() if last >= step]
    if step and _changes(folder, step, config):
        kept = paths.config_until(step)
        write_whole(kept, dump_config(_recipe_of(folder, step)))
        stale = [path for path in stale if path != kept]
    write_whole(paths.config, dump_config(config))
    for path in stale:
        path.unlink()


def _changes(folder: Path, step: int, config: Config) -> list[Change]:
    # Both as this version reads them, so that a key that it added is no change.
    before, now = (recipe.model_dump(mode="json", exclude_none=True) for recipe in (_recipe_of(folder, step), config))
    return changes_between([(step, before)], now)


def _recipe_of(folder: Path, step: int) -> Config:
    """The recipe of round `step`."""
    paths = RunPaths(folder)
    return load_config(next((path for last, path in paths.earlier_configs() if step <= last), paths.config))
