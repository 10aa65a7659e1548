"""The messages for a recipe that is not valid: each names the key, the value, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from realrl.objectives import CONFIGS

# Characters of a wrong value that a message shows.
_MAX_SHOWN = 200


def describe(fault: Any, document: Mapping[str, Any], recipe: type[BaseModel]) -> str:
    """One fault of pydantic's list as a sentence; for an unknown key with the nearest known one."""
    # pydantic's location contains the type of the objective and the kinds of a filter's value, which no recipe contains.
    location = [str(part) for part in fault["loc"]]
    if location and location[0] == "objective" and len(location) > 1:
        del location[1]
    if location[:2] == ["data", "filter"]:
        del location[3:]
    dotted = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = sorted(_known_keys(location[:-1], document, recipe))
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known: {', '.join(known)}"
        return f"unknown key {dotted}; {hint}"
    if fault["type"] == "missing":
        return f"missing key {dotted}"
    if fault["type"] == "union_tag_invalid":
        expected = list(CONFIGS)
        near = difflib.get_close_matches(str(fault["ctx"]["tag"]), expected, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(expected)}, or one of your own as 'module:Class'"
        return f"unknown objective.type {fault['ctx']['tag']!r}; {hint}"
    if fault["type"] == "unknown_part":
        return fault["msg"]
    message = fault["msg"].removeprefix("Value error, ")
    shown = repr(fault["input"])
    shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"
    if fault["type"] == "tuple_type":
        message = f"a list is needed, such as [{shown}]"
    elif fault["type"] in ("model_type", "model_attributes_type"):
        message = "a table is needed"
    return f"{dotted} = {shown}: {message}" if dotted else message


def _known_keys(location: list[str], document: Mapping[str, Any], recipe: type[BaseModel]) -> list[str]:
    """The keys of the section at `location`, nested sections included."""
    model: type[BaseModel] = recipe
    table: Any = document
    for name in location:
        table = table.get(name) if isinstance(table, Mapping) else None
        if model is recipe and name == "objective" and isinstance(table, Mapping):
            # Its type chooses one of several classes.
            model = CONFIGS[table["type"]]
        elif sections := sections_of(model, name):
            model = sections[0]
        else:
            return []
    return list(model.model_fields)


def sections_of(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """The classes that the value of a field can have, if the field is a section; an optional section is a union with None."""
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    return [a for a in (get_args(annotation) or (annotation,)) if isinstance(a, type) and issubclass(a, BaseModel)]
