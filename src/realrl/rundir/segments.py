"""The recipes of a run: config.toml is that of its newest steps; a resumed run with another one keeps those before it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from realrl.config import Config, dump_config, flatten, load_config, read_toml
from realrl.errors import ConfigError
from realrl.system.files import write_whole

_EARLIER = re.compile(r"config_until_step_(\d{1,15})\.toml")
# With another value of one of these, steps before and after cannot be compared: another task, another measure, another model.
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
    """A key of the recipe with another value from the round after `step` on; None where the recipe has no such key."""

    step: int
    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} = {self.before!r} → {self.after!r}"


def earlier_recipes(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """(last step, recipe) of each segment of the run but the newest, in order. ConfigError for a file that cannot be read."""
    return [(step, read_toml(path)) for step, path in _earlier_files(folder)]


def changes_between(recipes: Sequence[tuple[int, Mapping[str, Any]]], newest: Mapping[str, Any]) -> list[Change]:
    """What differs from each recipe to the next, `newest` being the last; not the folder, as a run may be moved."""
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
    """Make `config` the recipe of the steps after `step`, and keep the one before where it differs. Raises OSError.

    Killed anywhere within it and called again, it comes to the same.
    """
    stale = [path for last, path in _earlier_files(folder) if last >= step]
    if step and _changes(folder, step, config):
        kept = folder / f"config_until_step_{step:06}.toml"
        write_whole(kept, dump_config(_recipe_of(folder, step)))
        stale = [path for path in stale if path != kept]
    write_whole(folder / "config.toml", dump_config(config))
    for path in stale:
        path.unlink()


def _changes(folder: Path, step: int, config: Config) -> list[Change]:
    # As this version has them: a key that is new in it is no change.
    before, now = (recipe.model_dump(mode="json", exclude_none=True) for recipe in (_recipe_of(folder, step), config))
    return changes_between([(step, before)], now)


def _earlier_files(folder: Path) -> list[tuple[int, Path]]:
    found = ((_EARLIER.fullmatch(path.name), path) for path in folder.glob("config_until_step_*.toml"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _recipe_of(folder: Path, step: int) -> Config:
    """The recipe of round `step`."""
    return load_config(next((path for last, path in _earlier_files(folder) if step <= last), folder / "config.toml"))
