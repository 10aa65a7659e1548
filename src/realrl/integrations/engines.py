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
    """Raise EngineError where the engine is missing, or outside the tested range and the user has not said to go on."""
    tested = TESTED[name]
    try:
        found = version(name)
    except PackageNotFoundError as error:
        raise EngineError(
            f"realrl.integrations.{name} runs inside {name}, which is not installed here: pip install 'realrl[{name}]'"
        ) from error
    if os.environ.get(OVERRIDE) != "1" and not _number(tested[0]) <= _number(found) <= _number(tested[-1]):
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


def _number(text: str) -> tuple[int, ...]:
    """`1.16.0rc1` as (1, 16, 0); what is no number ends it."""
    digits = []
    for part in text.split("."):
        lead = part[: len(part) - len(part.lstrip("0123456789"))]
        if not lead:
            break
        digits.append(int(lead))
    return tuple(digits)
