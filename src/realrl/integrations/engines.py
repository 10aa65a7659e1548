"""Which versions of each engine were tested, and a check that fails at import and not after an hour."""

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
    """Raise EngineError where the engine is missing, or of an untested minor version (REALRL_UNTESTED_ENGINES=1 goes on)."""
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
    """Raise EngineError where one of an engine's inner functions does not take the named parameters, in this order."""
    found = [name for name in inspect.signature(function).parameters if name != "self"]
    if found[: len(parameters)] != list(parameters):
        raise EngineError(
            f"{engine} {version(engine)} has moved: {function.__qualname__} takes ({', '.join(found)}), and "
            f"realrl.integrations.{engine} calls it with ({', '.join(parameters)}); install a tested version: "
            f"{engine}=={TESTED[engine][-1]}"
        )


def _minor(text: str) -> list[str]:
    """`1.16.0` as ["1", "16"]: patches of a tested minor version go."""
    return text.split(".")[:2]
