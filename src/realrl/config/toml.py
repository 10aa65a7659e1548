"""Reading TOML files, their bases and their overrides, and checking values that no setting can have."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realrl.errors import ConfigError

# Limits of nested tables and of whole numbers. A file beyond them is not a recipe.
_MAX_DEPTH = 16
_MAX_INT = 2**62


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError if it is invalid, nested too deeply, or has a number that no setting can have."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    # Invalid TOML, bytes that are not UTF-8, or a number with thousands of digits; arrays nested without end.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    check_values(document, str(path))
    return document


def read_recipe(path: Path, default_objective: str) -> tuple[dict[str, Any], list[Path]]:
    """The tables of a recipe over those of its `base`, the base's base and so on, and the paths of all these files.

    Tables are merged key by key; any other value of the recipe replaces the base's. If the recipe names another
    `objective.type` than its base, the base's `[objective]` is left out.

    Raises ConfigError for a missing file, invalid TOML, or bases that form a cycle.
    """
    paths: list[Path] = []
    documents: list[dict[str, Any]] = []
    following: Path | None = path
    while following is not None:
        _check_exists(following, named_by=paths[-1] if paths else None)
        if any(following.resolve() == seen.resolve() for seen in paths):
            chain = " → ".join(map(str, [*paths, following]))
            raise ConfigError(f"{path}: the bases form a cycle: {chain}; remove one base")
        document = read_toml(following)
        base = document.pop("base", None)
        if base is not None and not (isinstance(base, str) and base):
            raise ConfigError(f"{following}: base = {base!r} must be the path of a recipe, relative to this file")
        paths.append(following)
        documents.append(document)
        following = following.parent / base if base else None
    merged: dict[str, Any] = {}
    for document in reversed(documents):
        objective = document.get("objective")
        if isinstance(objective, dict) and "type" in objective:
            start_objective_over(merged, objective["type"], default_objective)
        merged = _merge(merged, document)
    return merged, paths


def _check_exists(path: Path, named_by: Path | None) -> None:
    note = f" (the base of {named_by})" if named_by else ""
    try:
        found = path.is_file()
    except OSError as error:
        raise ConfigError(f"cannot open the recipe {str(path)[:80]}…{note}: {error.strerror}") from error
    if not found:
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.toml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"no recipe at {path}{note}{hint}")


def start_objective_over(document: dict[str, Any], name: Any, default_objective: str) -> None:
    """Empty the document's `[objective]` if its type is not `name`: its other keys belong to its own type."""
    table = document.get("objective")
    if isinstance(table, dict) and table.get("type", default_objective) != name:
        document["objective"] = {}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def set_dotted(document: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the key with a dotted name, such as "optim.lr". A text is read as TOML, or kept as text if it is not TOML."""
    *sections, key = dotted.split(".")
    node = document
    for name in sections:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--{dotted}: {name} is a value, not a section")
    node[key] = _value(value) if isinstance(value, str) else value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def check_values(document: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError for text that is not Unicode, numbers that are not finite or too large, and too many nested tables."""
    nodes: list[Any] = [document]
    for _ in range(_MAX_DEPTH):
        nodes = [value for node in nodes for value in (node.values() if isinstance(node, dict) else node)]
        for value in nodes:
            if isinstance(value, str) and not _is_text(value):
                raise ConfigError(f"{source}: {value[:80]!r} is not text: it holds bytes that are not UTF-8")
            if isinstance(value, int | float) and not abs(value) < _MAX_INT:
                raise ConfigError(f"{source}: {str(value)[:20]} is not allowed; numbers must be finite and below 2^62")
        nodes = [value for value in nodes if isinstance(value, dict | list | tuple)]
    if nodes:
        raise ConfigError(f"{source}: tables or lists are nested deeper than {_MAX_DEPTH}; a recipe has three levels")


def _is_text(value: str) -> bool:
    """Whether a file can hold the text. Python reads a command line with other bytes as halves of surrogate pairs."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optim": {"lr": 1}}` as `{"optim.lr": 1}`; an empty table is left out."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
