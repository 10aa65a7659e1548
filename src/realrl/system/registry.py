"""Find parts by name, in a table that can be extended, or by "module:name" in any module."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Generic, TypeVar

from realrl.errors import ConfigError, RealrlError

T = TypeVar("T")


class Registry(Generic[T]):
    """The parts that the option `key` can name. A part given as "module:name" is imported when it is used.

    The other arguments are for errors: `kind` says what a part is, such as "a sampler class"; `also` (names) and `besides`
    (words) say what else the option accepts; `error` is the exception class.
    """

    def __init__(
        self,
        key: str,
        kind: str,
        known: Mapping[str, T | str],
        *,
        also: Iterable[str] = (),
        besides: str = "",
        error: type[RealrlError] = ConfigError,
    ) -> None:
        self._key, self._kind, self._known = key, kind, dict(known)
        self._also, self._besides, self._error = also, besides, error

    def register(self, name: str, part: T) -> None:
        """Register `part` under `name`."""
        self._known[name] = part

    def names(self) -> list[str]:
        """The known names, in order of registration."""
        return list(self._known)

    def check(self, name: str) -> None:
        """Raise the registry's error for a plain name that is not known. A part given as "module:name" is not imported."""
        if name in self._known or ":" in name:
            return
        known = [*self._also, *self._known]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise self._error(
            f'unknown {self._key} {name!r}; known: {", ".join(known)}, or {self._besides}{self._kind} as "module:name"{hint}'
        )

    def find(self, name: str) -> T:
        """The part registered under `name`, or the object at "module:name".

        Raises the registry's error for an unknown name, a module that cannot be imported, or an object that is not callable.
        """
        self.check(name)
        part: Any = self._known.get(name, name)
        return self._load(part) if isinstance(part, str) else part

    def _load(self, path: str) -> Any:
        module, _, name = path.partition(":")
        # An installed command does not search the current folder for modules.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            part = attrgetter(name)(importlib.import_module(module))
        except Exception as error:
            raise self._error(
                f"{self._key} = {path!r} cannot be loaded: {type(error).__name__}: {error}; give {self._kind} as "
                '"module:name", with the module in the current folder or on PYTHONPATH'
            ) from error
        if not callable(part):
            raise self._error(f"{self._key} = {path!r} is of type {type(part).__name__}; it must be {self._kind}")
        return part
