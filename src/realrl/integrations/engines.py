"""The tested versions of each engine, and checks at import instead of a failure after an hour."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from realrl.errors import EngineError

TESTED: dict[str, tuple[str, ...]] = {
    "trl": ("1.14.2", "1.16.0"),
    "verl": ("0.9.1",),
}
OVERRIDE = "REALRL_UNTESTED_ENGINES"


def check_engine(name: str) -> None:
    """Raise EngineError for a missing engine or an untested minor version, unless REALRL_UNTESTED_ENGINES=1 is set."""
    tested = TESTED[name]
    try:
        found = version(name)
    except PackageNotFoundError as error:
        raise EngineError(
            f"realrl.integrations.{name} runs inside {name}, which is not installed here: pip install 'realrl[{name}]'"
        ) from error
    if os.environ.get(OVERRIDE) != "1" and _minor(found) not in map(_minor, tested):
        raise EngineError(
            f"{name} {found} is installed; realrl.integrations.{name} was tested with {', '.join(tested)}: "
            f"pip install '{name}=={tested[-1]}', or set {OVERRIDE}=1 to run it untested"
        )


def check_signature(engine: str, function: Callable[..., Any], parameters: Sequence[str]) -> None:
    """Raise EngineError if an internal function of an engine does not have these parameters, in this order."""
    found = [name for name in inspect.signature(function).parameters if name != "self"]
    if found[: len(parameters)] != list(parameters):
        raise EngineError(
            f"{engine} {version(engine)} has changed: {function.__qualname__} takes ({', '.join(found)}), but "
            f"realrl.integrations.{engine} needs ({', '.join(parameters)}); install a tested version: "
            f"{engine}=={TESTED[engine][-1]}"
        )


def _minor(text: str) -> list[str]:
    """`1.16.0` as ["1", "16"]: every patch of a tested minor version is accepted."""
    return text.split(".")[:2]
