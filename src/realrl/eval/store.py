"""Generations on disk: one JSONL file for each benchmark, written as responses finish, beside the settings that made them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realrl.errors import DataError
from realrl.system.files import file_name, write_whole
from realrl.system.platforms import try_lock

SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class Generation:
    """One response to one problem; `tokens` is None if a server does not count them.

    `prompt` is the first 16 hexadecimal digits of the SHA-256 of the rendered prompt.
    """

    id: str
    sample: int
    prompt: str
    response: str
    tokens: int | None
    truncated: bool


def prompt_digest(prompt: str) -> str:
    """The digest in `Generation.prompt`."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Store:
    """The folder of one model's evaluation; at most one process has it open.

    Raises DataError for a folder in use, for settings that differ from those of the stored generations, and for a damaged
    file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "generations").mkdir(parents=True, exist_ok=True)
        self._lock = (folder / ".lock").open("w")
        if not try_lock(self._lock.fileno()):
            self._lock.close()
            raise DataError(f"{folder} is in use by another realrl eval; wait for it, or choose another folder with -o")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.close()

    def begun(self) -> bool:
        """Whether the folder has settings, and so perhaps generations."""
        return (self.folder / SETTINGS).exists()

    def settings(self) -> dict[str, Any]:
        """The settings of the stored generations. Raises DataError if there are none."""
        path = self.folder / SETTINGS
        try:
            return _checked(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise DataError(f"{self.folder} has no {SETTINGS}; give the folder of an evaluation (-o)") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is damaged: {error}; choose another folder with -o") from error

    def keep_settings(self, settings: dict[str, Any]) -> None:
        """Write the settings, or compare them with the stored ones. New `benchmarks` are added to the stored ones."""
        path = self.folder / SETTINGS
        if self.begun():
            # Earlier versions did not store the dtype.
            stored = {"dtype": settings.get("dtype")} | self.settings()
            before, now = (_dotted(kept) for kept in (stored, settings))
            others = [
                f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
                for key in sorted(before.keys() | now.keys())
                if before.get(key) != now.get(key)
            ]
            if others:
                raise DataError(
                    f"{self.folder} has generations with other settings ({'; '.join(others)}); choose another folder with "
                    "-o, or use the same settings"
                )
            settings = settings | {"benchmarks": stored["benchmarks"] | settings["benchmarks"]}
        write_whole(path, json.dumps(settings, indent=1) + "\n")

    def load(self, benchmark: str) -> dict[tuple[str, int], Generation]:
        """Stored generations by (problem id, sample). Removes an incomplete last line, which a crash can leave."""
        path = self._path(benchmark)
        if not path.exists():
            return {}
        generations: dict[tuple[str, int], Generation] = {}
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    generation = Generation(**json.loads(line))
                    _check(generation)
                except (ValueError, TypeError, RecursionError) as error:
                    raise DataError(
                        f"{path}, line {number}: not a stored generation ({error}); delete the line, and it is generated again"
                    ) from error
                generations.setdefault((generation.id, generation.sample), generation)
        if whole < path.stat().st_size:
            os.truncate(path, whole)
        return generations

    def append(self, benchmark: str, generations: Iterable[Generation]) -> None:
        """Append generations. They are on disk when this returns."""
        lines = "".join(json.dumps(asdict(generation)) + "\n" for generation in generations)
        with self._path(benchmark).open("ab") as file:
            file.write(lines.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())

    def _path(self, benchmark: str) -> Path:
        return self.folder / "generations" / f"{file_name(benchmark)}.jsonl"


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the benchmarks, with dotted names for the keys of tables."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key != "benchmarks":
            flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _checked(settings: Any) -> dict[str, Any]:
    """The settings. Raises ValueError if `realrl eval` did not write them."""
    fields = {"model": str, "seed": int, "data": dict, "benchmarks": dict}
    wrong = [
        name for name, kind in fields.items() if not isinstance(settings, dict) or not isinstance(settings.get(name), kind)
    ]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} missing or of a wrong type")
    for name, counts in settings["benchmarks"].items():
        if not isinstance(counts, dict) or not all(isinstance(counts.get(key), int) for key in ("problems", "of", "samples")):
            raise ValueError(f"benchmarks.{name} lacks the numbers of problems and samples")
    return settings


def _check(generation: Generation) -> None:
    """Raise TypeError if a field of a stored generation has the wrong type."""
    texts, flag = (generation.id, generation.prompt, generation.response), generation.truncated
    counts = [generation.sample, *([] if generation.tokens is None else [generation.tokens])]
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(type(count) is int for count in counts)
        or type(flag) is not bool
    ):
        raise TypeError("a field has a wrong type")


def read_graded(file: Path, columns: Sequence[str], remedy: str) -> list[list[Any]]:
    """Columns of graded samples as text, such as id, problem and status. Raises DataError, with the remedy, if it cannot."""
    try:
        table = pq.read_table(file, columns=list(columns))
        return [table[name].cast(pa.string()).to_pylist() for name in columns]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{file} cannot be read: {error}; {remedy}") from error
