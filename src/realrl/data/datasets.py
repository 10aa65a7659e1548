"""Load problems by name: a generated task, a file or folder, a named set, a user's function, or a data set on the hub."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from realrl.config import Keep, KeepRange
from realrl.data.readers import is_file_name, read_file, records
from realrl.data.rows import make_problem
from realrl.data.tasks import TASKS, TaskProblems
from realrl.errors import DataError
from realrl.system.hub import reach_hub
from realrl.system.registry import Registry
from realrl.types import Problem


@dataclass(frozen=True, slots=True)
class NamedSet:
    """Where to find a named set: a file in the data folder, else a split on the hub; and its unusual columns."""

    file: str
    hub: str
    split: str
    configuration: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    hub_columns: Mapping[str, str] = field(default_factory=dict)


NAMED: dict[str, NamedSet] = {
    "aime24": NamedSet("eval/aime24.parquet", "HuggingFaceH4/aime_2024", "train"),
    "aime25": NamedSet("eval/aime25.parquet", "yentinglin/aime_2025", "train"),
    "amc23": NamedSet("eval/amc23.parquet", "math-ai/amc23", "test"),
    "amc22_23": NamedSet("eval/amc22_23.parquet", "AI-MO/aimo-validation-amc", "train"),
    "math500": NamedSet("eval/math500.parquet", "HuggingFaceH4/MATH-500", "test"),
    "minerva": NamedSet("eval/minerva.parquet", "math-ai/minervamath", "test"),
    # The same problems with the answer lists that DeepScaleR's code uses; in 40 rows none of them is the official answer.
    "minerva_deepscaler": NamedSet(
        "eval/minerva.parquet", "math-ai/minervamath", "test", columns={"answer": "answers_deepscaler"}
    ),
    "olympiadbench": NamedSet("eval/olympiadbench.parquet", "math-ai/olympiadbench", "test"),
    "gsm8k": NamedSet("eval/gsm8k_test.parquet", "openai/gsm8k", "test", "main"),
    "gsm8k_train": NamedSet("train/gsm8k_train.parquet", "openai/gsm8k", "train", "main"),
    "deepscaler": NamedSet("train/deepscaler_preview.parquet", "agentica-org/DeepScaleR-Preview-Dataset", "train"),
    "dapo_math_17k": NamedSet(
        "train/dapo_math_17k.parquet",
        "open-r1/DAPO-Math-17k-Processed",
        "train",
        "all",
        hub_columns={"problem": "prompt", "answer": "solution"},
    ),
    "math": NamedSet("train/math_train.parquet", "nlile/hendrycks-MATH-benchmark", "train"),
}
# What `data.train` and `data.eval` can name besides tasks, files and hub names: a named set, or a function that is called with
# "train" or "eval" and returns rows as mappings.
SETS: Registry[NamedSet | Callable[[str], Any]] = Registry(
    "data set", "a function", NAMED, also=TASKS, besides="a path, a hub name (owner/name), ", error=DataError
)
# Column names to try if the recipe does not map a column.
_ALIASES = {
    "problem": ("problem", "question", "prompt", "messages"),
    "answer": ("answer", "final_answer", "gold", "reward_model.ground_truth"),
    "id": ("id", "problem_id", "unique_id"),
}
_SHOWN_BAD_ROWS = 5


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """Usable problems, the number of bad rows with a few examples, and the number of rows that the filter removed.

    `system_turns` counts usable rows whose chat has a system turn, which is left out.
    """

    name: str
    problems: Sequence[Problem]
    bad_rows: int = 0
    bad_examples: list[str] = field(default_factory=list)
    filtered: int = 0
    system_turns: int = 0

    def warnings(self) -> list[str]:
        """A warning about bad rows and one about system turns, if there are any."""
        lines = []
        if self.bad_rows:
            lines.append(f"WARNING: {self.name}: {self.bad_rows} bad rows skipped: {'; '.join(self.bad_examples)}")
        if self.system_turns:
            lines.append(
                f"WARNING: {self.name}: the system turns of {self.system_turns} chats are left out; set their text as "
                "data.system_prompt"
            )
        return lines


def load_problems(
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    seed: int = 0,
    task_options: Mapping[str, Any] | None = None,
    count: int = 128,
    split: str = "train",
    keep: Mapping[str, Keep] | None = None,
) -> LoadedProblems:
    """Load the problems of `name`.

    `count` is the maximum size of a generated evaluation set. With `strict`, a bad row is an error. `keep` maps columns to the
    values, or range of values, that a row must have.

    Raises DataError if the set cannot be found or read, if a column is missing, or if no row is usable.
    """
    if name in TASKS:
        return LoadedProblems(name, TaskProblems(name, split, seed, task_options or {}, count))
    rows, source, known = _open(name, split)
    return _collect(name, source, rows, {**known, **(columns or {})}, strict, keep or {})


def list_sets() -> list[tuple[str, str, str]]:
    """All named sets: name, local file ("" if there is none), and name on the hub."""
    found = []
    for name, known in NAMED.items():
        found.append((name, str(local_file(name) or ""), known.hub))
    return found


def _open(name: str, split: str) -> tuple[Iterable[tuple[str, Any]], str, Mapping[str, str]]:
    """Rows as (place, record) from the first source with this name, then that source and its column mapping."""
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # a home folder that does not exist
        path = path.expanduser()
    if path.is_file():
        return read_file(path), str(path), {}
    if path.is_dir():
        return _read_hub(str(path), None, "train"), str(path), {}
    if is_file_name(name) or name.startswith((".", "/", "~")):
        raise DataError(f"no file at {name}; data.train and data.eval take a path, a named set or a generated task")
    if "/" in name:
        return _read_hub(name, None, "train"), name, {}
    known = SETS.find(name)
    if not isinstance(known, NamedSet):
        return _call(name, known, split), name, {}
    if file := local_file(name):
        return read_file(file), str(file), known.columns
    columns = {**known.columns, **known.hub_columns}
    return _read_hub(known.hub, known.configuration, known.split, name), known.hub, columns


def _call(name: str, function: Callable[[str], Any], split: str) -> Iterable[tuple[str, Any]]:
    """The rows from a user's function; raises DataError if its result is not an iterable of rows."""
    rows = function(split)
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
        raise DataError(f"data set {name!r} gave a {type(rows).__name__}; it must return rows with a problem and an answer")
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def local_file(name: str) -> Path | None:
    """The file of a named set in the folder REALRL_DATA, or None; raises DataError if REALRL_DATA is not a folder."""
    folder = os.environ.get("REALRL_DATA")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise DataError(f"REALRL_DATA = {folder!r} is not a folder; set it to the folder of the named sets, or unset it")
    file = Path(folder) / NAMED[name].file
    return file if file.is_file() else None


def _read_hub(hub: str, configuration: str | None, split: str, name: str | None = None) -> Iterable[tuple[str, Any]]:
    """Read a hub name or a local folder with the `datasets` library."""
    from datasets import load_dataset

    if not Path(hub).is_dir():
        reach_hub()
    try:
        loaded = load_dataset(hub, configuration, split=split)
    except Exception as error:  # noqa: BLE001  the library raises many kinds for an unreachable or unreadable set
        wanted = f"{name} ({hub})" if name else hub
        raise DataError(
            f"the data set {wanted} could not be loaded by `datasets`: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. Set REALRL_DATA to a folder with "
            f"{NAMED[name].file if name else 'the file'}, or give the path of a JSONL, Parquet or CSV file"
        ) from error
    tables = loaded.with_format("arrow").iter(1024)
    return ((f"row {number}", record) for number, record in enumerate(chain.from_iterable(map(records, tables)), start=1))


def _collect(
    name: str,
    source: str,
    rows: Iterable[tuple[str, Any]],
    columns: Mapping[str, str],
    strict: bool,
    keep: Mapping[str, Keep],
) -> LoadedProblems:
    problems: list[Problem] = []
    bad: list[str] = []
    filtered = system_turns = 0
    mapping: dict[str, str] | None = None
    for number, (place, record) in enumerate(rows):
        if not isinstance(record, dict):
            bad.append(f"{place}: {record if isinstance(record, str) else 'not an object with columns'}")
            continue
        if mapping is None:
            mapping = _map_columns(source, list(record), columns)
            for column in keep:
                if column not in record:
                    raise DataError(f"{source} has no column {column!r}, named in data.filter; it has {list(record)}")
        if not all(_kept(record.get(column), wanted) for column, wanted in keep.items()):
            filtered += 1
            continue
        try:
            problem, has_system = make_problem(record, mapping, f"{name}-{number}")
            problems.append(problem)
            system_turns += has_system
        except ValueError as error:
            bad.append(f"{place}: {error}")
    if bad and strict:
        raise DataError(f"{source}: {len(bad)} bad rows and data.strict is on; first: {'; '.join(bad[:_SHOWN_BAD_ROWS])}")
    if not problems:
        detail = f"; {len(bad)} bad rows, first: {'; '.join(bad[:_SHOWN_BAD_ROWS])}" if bad else ""
        detail += f"; data.filter removed {filtered} rows" if filtered else ""
        raise DataError(f"{source} has no usable problem{detail}")
    return LoadedProblems(name, problems, len(bad), bad[:_SHOWN_BAD_ROWS], filtered, system_turns)


def _kept(value: Any, wanted: Keep) -> bool:
    """Whether a row's value is one of the wanted values or in the wanted range; a value that is not a number is in no range."""
    if not isinstance(wanted, KeepRange):
        return value in wanted
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return (wanted.min is None or number >= wanted.min) and (wanted.max is None or number <= wanted.max)


def _map_columns(source: str, found: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our name → the source's column, from the recipe's mapping or the usual names."""
    mapping = {}
    for ours in ("problem", "answer", "id"):
        wanted = columns.get(ours)
        if wanted is not None and wanted.partition(".")[0] not in found and wanted not in found:
            near = difflib.get_close_matches(wanted, found, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise DataError(f"{source} has no column {wanted!r}{hint}, named in data.columns.{ours}; it has {found}")
        chosen = wanted or next((alias for alias in _ALIASES[ours] if alias.partition(".")[0] in found), None)
        if chosen is None and ours != "id":
            raise DataError(
                f"{source} has no {ours} column (looked for {', '.join(_ALIASES[ours])}); it has {found}; "
                f"set data.columns.{ours} to one of them"
            )
        if chosen is not None:
            mapping[ours] = chosen
    return mapping
