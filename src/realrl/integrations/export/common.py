"""What the exports share: the machines, the table of a recipe's keys, the model's name, and files in a folder."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from realrl.config import Config
from realrl.errors import ConfigError
from realrl.models.resolve import adapter_folder, resolve_model


@dataclass(frozen=True, slots=True)
class Machines:
    """Where the recipe will run: one process on each GPU."""

    gpus_per_node: int = 8
    nodes: int = 1

    @property
    def processes(self) -> int:
        return self.gpus_per_node * self.nodes


@dataclass(frozen=True, slots=True)
class Export:
    """A recipe for another engine: the script `script_name`, how to start it, further files, and what to know.

    `files` write themselves to the path that they are given, and only where a folder was asked for.
    """

    script_name: str
    script: str
    command: str
    notes: list[str]
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)

    def write(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write everything into `folder`; ConfigError where it has files already, unless they may be replaced."""
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise ConfigError(f"the folder {folder} has files; --overwrite replaces them, -o names another")
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in self.files.items():
            write(folder / name)
        (folder / self.script_name).write_text(self.script, encoding="utf-8")


def model_source(config: Config) -> str:
    """A folder or a hub name for `model.path`; a built-in model is made now. ConfigError for an adapter without its base."""
    name = resolve_model(config.model.path)
    if adapter_folder(name) is not None:
        raise ConfigError(
            f"model.path = {config.model.path!r} is an adapter, which our trainer merges into its base model; merge it "
            "(PeftModel.merge_and_unload), save the whole model, and give that folder"
        )
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def local_path(name: str) -> str:
    """A file or folder by its full path, so that the script can be started anywhere; any other name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def changed(config: Config, key: str) -> bool:
    """Whether a dotted key has another value than its default."""
    section, name = key.split(".")
    part = getattr(config, section)
    info = type(part).model_fields[name]
    return getattr(part, name) != info.get_default(call_default_factory=True)


def left_out_notes(config: Config, left_out: Mapping[str, str]) -> list[str]:
    """A line for each key without a counterpart that a recipe sets, unless it only switches something off."""
    wanted = {key: why for key, why in left_out.items() if changed(config, key) and value_of(config, key) is not False}
    return [f"{key} = {value_of(config, key)!r}: {why}" for key, why in wanted.items()]


def value_of(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def refused_keys(config: Config, refused: Mapping[str, str]) -> list[str]:
    """A fault for each key that would have to be at its default."""
    return [f"{key} = {value_of(config, key)!r}: {why}" for key, why in refused.items() if changed(config, key)]


def refuse(engine: str, faults: list[str]) -> None:
    """ConfigError that lists every fault."""
    if faults:
        raise ConfigError(f"this recipe cannot be exported to {engine}:\n" + "\n".join(f"- {fault}" for fault in faults))


def given(section: Any, *, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a section that the recipe gives, as plain values."""
    document = section.model_dump(mode="json", exclude_unset=True)
    return {key: value for key, value in document.items() if key not in leave}


def objective_table(config: Config) -> dict[str, Any]:
    """`[objective]` as the recipe has it."""
    return {"type": config.objective.type, **given(config.objective)}


def bullets(notes: list[str], prefix: str = "") -> str:
    """Notes as a wrapped list, each line after `prefix`."""
    lines = []
    for note in notes:
        lines += textwrap.wrap(f"- {note}", 120 - len(prefix), subsequent_indent="  ", break_long_words=False)
    return "\n".join(prefix + line for line in lines)
