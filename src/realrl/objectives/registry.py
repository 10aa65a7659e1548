"""Find objectives by name or "module:Class". Imports torch only to build an objective."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from realrl.objectives.configs import CONFIGS, BaseObjectiveConfig

if TYPE_CHECKING:
    from realrl.objectives.base import Objective

CLASSES = {
    "real": "realrl.objectives.real:Real",
    "bce": "realrl.objectives.bce:BCE",
    "grpo": "realrl.objectives.grpo:GRPO",
    "dapo": "realrl.objectives.grpo:DAPO",
    "gspo": "realrl.objectives.gspo:GSPO",
    "trpa": "realrl.objectives.trpa:TRPA",
    "disco": "realrl.objectives.disco:DisCO",
    "dr_grpo": "realrl.objectives.grpo:DrGRPO",
    "cispo": "realrl.objectives.cispo:CISPO",
    "sapo": "realrl.objectives.sapo:SAPO",
    "gmpo": "realrl.objectives.gmpo:GMPO",
    "pacs": "realrl.objectives.pacs:PACS",
    "nft": "realrl.objectives.nft:NFT",
}


def list_objectives() -> list[str]:
    """The names of the built-in objectives."""
    return sorted(CLASSES)


def options_of(name: str) -> type[BaseObjectiveConfig]:
    """The class with the options of an objective, by name or "module:Class".

    Raises ValueError for an unknown name (with a suggestion), a module that cannot be imported, or a class that is not an
    objective.
    """
    return CONFIGS[name] if name in CONFIGS else _own_class(name)


def build_objective(config: Mapping[str, Any] | BaseModel) -> Objective:
    """Build the objective from a table (`{"type": "real", "tau": 0.5}`, `{"type": "my_losses:Mine"}`) or from its options.

    Raises ValueError for an unknown type or key (with a suggestion) or a value out of range.
    """
    from realrl.objectives.base import Objective

    if isinstance(config, Objective):
        return config
    fields = config.model_dump() if isinstance(config, BaseModel) else dict(config)
    name = fields.get("type")
    if not isinstance(name, str):
        raise ValueError(f'unknown objective type {name!r}; give type = "real", or another of {", ".join(list_objectives())}')
    cls: Any = _load(CLASSES[name]) if name in CLASSES else _own_class(name)
    unknown = [key for key in fields if key not in cls.model_fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(cls.model_fields), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"objective {name!r} has no key {unknown[0]!r}{hint} Known: {', '.join(cls.model_fields)}")
    try:
        return cls(**fields)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise ValueError(f"objective {name!r}: {faults}") from error


def _own_class(name: str) -> type[BaseObjectiveConfig]:
    from realrl.objectives.base import Objective

    if ":" not in name:
        near = difflib.get_close_matches(name, list_objectives(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown objective type {name!r}{hint} Known: {', '.join(list_objectives())}, or one of your own as 'module:Class'"
        )
    try:
        found = _load(name)
    except Exception as error:
        raise ValueError(f"objective {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ValueError(
            f"objective {name!r} is {found!r}; it must be a subclass of realrl.ScoreObjective or AdditiveObjective"
        )
    return found


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        # A console script does not search the current folder for modules.
        sys.path.append(os.getcwd())
    return getattr(importlib.import_module(module), name)
