"""Shared by both exports: the machines, the table of recipe keys and what is made from it, and the exported files."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from realrl.config import Config
from realrl.errors import ConfigError
from realrl.models.resolve import adapter_folder, resolve_model


@dataclass(frozen=True, slots=True)
class Machines:
    """The machines that run the recipe, with one process on each GPU."""

    gpus_per_node: int = 8
    nodes: int = 1

    @property
    def processes(self) -> int:
        return self.gpus_per_node * self.nodes


@dataclass(frozen=True)
class Plan:
    """A recipe and its machines: everything that the rows of a table read."""

    config: Config
    machines: Machines

    @cached_property
    def model(self) -> str:
        """A folder or a hub name; a built-in model is created now. Raises ConfigError for an adapter without its base model."""
        path = self.config.model.path
        name = resolve_model(path)
        if adapter_folder(name) is not None:
            raise ConfigError(
                f"model.path = {path!r} is an adapter, and an engine needs the whole model; merge the adapter into its base "
                "model (PeftModel.merge_and_unload), save the result, and set model.path to that folder"
            )
        return local_path(name)

    @property
    def updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.train.steps * self.config.updates_per_step

    @property
    def longest(self) -> int:
        """Tokens of the longest possible sequence."""
        return self.config.data.max_prompt_tokens + self.config.sampling.max_new_tokens

    @property
    def vllm(self) -> bool:
        return self.config.sampling.engine == "vllm"

    @property
    def evaluates(self) -> bool:
        return bool(self.config.data.eval)

    def value(self, key: str) -> Any:
        """The value of `section.key`; the whole section for `section.*`."""
        section, name = key.split(".")
        found = getattr(self.config, section)
        return found if name == "*" else getattr(found, name)

    def sets(self, key: str) -> bool:
        """Whether the recipe changes `section.key` from its default, other than to switch something off."""
        section, name = key.split(".")
        info = type(getattr(self.config, section)).model_fields[name]
        return self.value(key) != info.get_default(call_default_factory=True) and self.value(key) is not False


P = TypeVar("P", bound=Plan)
# What a row says: a text if the recipe sets the key, or a function of the key's value and the plan that returns a text or
# something false.
Said = str | Callable[[Any, P], object]


@dataclass(frozen=True, slots=True)
class Row(Generic[P]):
    """What an engine makes of one recipe key.

    `options` are the options that take the value, or a function of the value and the plan that returns options with their
    values; they are written if `when` is true. `elsewhere` names the part of the script that takes the value instead. `note`
    says what the engine does differently, `refused` what to set instead.
    """

    options: str | tuple[str, ...] | Callable[[Any, P], dict[str, Any]] = ()
    when: Callable[[Any, P], object] = lambda value, plan: True
    elsewhere: str = ""
    note: Said[P] = ""
    refused: Said[P] = ""


# Recipe key → row. `section.*` is a row for the keys of a section that have none of their own.
Table = Mapping[str, Row[P]]


def engine_options(table: Table[P], plan: P) -> dict[str, dict[str, Any]]:
    """The engine's options in the order of the table, grouped by the recipe's sections."""
    sections: dict[str, dict[str, Any]] = {}
    for key, row in table.items():
        options, value = row.options, plan.value(key)
        if options and row.when(value, plan):
            names = (options,) if isinstance(options, str) else options
            made = names(value, plan) if callable(names) else dict.fromkeys(names, value)
            sections.setdefault(f"[{key.split('.')[0]}]", {}).update(made)
    return sections


def engine_notes(table: Table[P], plan: P) -> list[str]:
    """What the engine does differently with this recipe, one line for each key."""
    return _said({key: row.note for key, row in table.items()}, plan)


def refuse(engine: str, table: Table[P], plan: P) -> None:
    """Raise ConfigError that lists every key with a value that the engine cannot take."""
    raise_faults(engine, _said({key: row.refused for key, row in table.items()}, plan))


def raise_faults(engine: str, faults: list[str]) -> None:
    if faults:
        raise ConfigError(f"this recipe cannot be exported to {engine}:\n" + "\n".join(f"- {fault}" for fault in faults))


def _said(texts: Mapping[str, Said[P]], plan: P) -> list[str]:
    said = {k: text(plan.value(k), plan) if callable(text) else text and plan.sets(k) and text for k, text in texts.items()}
    return [f"{key} = {plan.value(key)!r}: {text}" for key, text in said.items() if text]


def own_module(value: str, plan: Plan) -> object:
    """A note on a part of the user's own, "module:name"."""
    module, colon, _ = value.partition(":")
    return colon and f"put the module {module} beside the script or on PYTHONPATH"


def trackers(plan: Plan) -> list[str]:
    return [name for name in ("wandb", "trackio", "tensorboard") if getattr(plan.config.log, name)]


@dataclass(frozen=True, slots=True)
class Export:
    """A recipe for another engine: its script, the command that starts it, further files, and what to know.

    Each function in `files` writes one file to the path that it gets; they are called only if a folder is written.
    """

    script_name: str
    script: str
    command: str
    notes: list[str]
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)

    def write(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write everything into `folder`. Raises ConfigError if the folder already has files, unless `overwrite` is set."""
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise ConfigError(
                f"the folder {folder} already has files; choose another with -o, or replace them with --overwrite"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in self.files.items():
            write(folder / name)
        (folder / self.script_name).write_text(self.script, encoding="utf-8")


def local_path(name: str) -> str:
    """The full path of a local file or folder, so the script starts from anywhere; any other name unchanged."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def given(section: Any) -> dict[str, Any]:
    """The keys that the recipe sets in a section, as plain values, with `type` if the section has one."""
    values = section.model_dump(mode="json", exclude_unset=True)
    return {"type": section.type} | values if hasattr(section, "type") else values


def bullets(notes: list[str], prefix: str = "") -> str:
    """The notes as a wrapped list, with `prefix` before each line."""
    lines = []
    for note in notes:
        lines += textwrap.wrap(f"- {note}", 120 - len(prefix), subsequent_indent="  ", break_long_words=False)
    return "\n".join(prefix + line for line in lines)


def plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count:,} {noun}{ending if count != 1 else ''}"
