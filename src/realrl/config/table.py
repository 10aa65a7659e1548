"""The tables of keys in docs/recipe.md, from the fields' descriptions: `python -m realrl.config.table docs/recipe.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from realrl.config import Config
from realrl.config.faults import sections_of
from realrl.objectives import CONFIGS, BaseObjectiveConfig

# A marker, an empty line, and the rows that an earlier call wrote.
_MARKED = re.compile(r"^(<!-- keys of (\w+) -->\n\n)(?:\|.*\n)*", re.MULTILINE)


def fill(page: str) -> str:
    """The page with a new table after each line `<!-- keys of SECTION -->`."""
    return _MARKED.sub(lambda found: found[1] + "".join(f"{line}\n" for line in table(found[2])), page)


def table(section: str) -> list[str]:
    """The lines of a section's table in Markdown, a row for each field with a description; none without such a field."""
    if section != "objective":
        (model,) = sections_of(Config, section)
        return _lines(("key", "default", "meaning"), _rows(model, section, {}))
    # The keys of the KL penalty are the same for every type; their defaults are not.
    common = [("every", *row) for row in _rows(BaseObjectiveConfig, section, {})]
    own = [
        (f"`{name}`", *row)
        for name, model in CONFIGS.items()
        for row in _rows(model, section, {})
        if not row[0].startswith(f"`{section}.kl") or (row[0] == f"`{section}.kl`" and row[1] != common[0][2])
    ]
    return _lines(("type", "key", "default", "meaning"), [*common, *own])


def _lines(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines] if lines else []


def _rows(model: type[BaseModel], prefix: str, defaults: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of each field with a description. `defaults` go before those of the class."""
    for key, field in model.model_fields.items():
        dotted = f"{prefix}.{key}"
        default = defaults.get(key, field.default)
        if field.description:
            yield f"`{dotted}`", _default(field, default), field.description.replace("|", "\\|")
        for section in sections_of(model, key):
            # The keys of list items have no dotted names.
            if field.annotation in (section, section | None):
                yield from _rows(section, dotted, dict(default) if isinstance(default, section) else {})


def _default(field: FieldInfo, default: Any) -> str:
    if field.is_required():
        return "required"
    if field.default_factory:
        return "see meaning"
    return "absent" if default is None else _toml(default)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, BaseModel):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value)} }}"
    # 2e-6, not Python's 2e-06.
    return re.sub(r"e([-+])0", r"e\1", repr(value))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(fill(Path(name).read_text()))
