"""Two evaluated models on the same problems: paired differences, their interval and p-value."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from realrl.errors import DataError
from realrl.eval.intervals import interval, sign_flip_p_value
from realrl.eval.store import read_graded
from realrl.eval.tables import Table


def compare_evaluations(a: Path, b: Path) -> tuple[Table, list[dict[str, Any]]]:
    """Pass@1 of two evaluation folders on the problems that both have, as a table and as records.

    The difference is b − a. Its 95 % interval comes from a bootstrap over problems, its two-sided p-value from random signs of
    the problems' differences. Raises DataError for a folder without graded samples, for folders without a common problem, and
    for an id that means different problems in the two folders, as after a change of the data or of a task's seed.
    """
    firsts, seconds = _problems(a), _problems(b)
    records: list[dict[str, Any]] = []
    sets: list[tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]] = []
    for name in firsts:
        ids = [identity for identity in firsts[name] if identity in seconds.get(name, {})]
        if ids:
            if other := [identity for identity in ids if firsts[name][identity].text != seconds[name][identity].text]:
                raise DataError(
                    f"{name}: {len(other)} of {len(ids)} common ids are different problems in {b} and in {a}, the first is "
                    f"{other[0]}; evaluate both on the same data, a generated task with the same --seed"
                )
            first, second = (np.array([found[name][identity].share for identity in ids]) for found in (firsts, seconds))
            sets.append((first, second))
            left_out = len(firsts[name].keys() ^ seconds[name].keys())
            records.append({"benchmark": name, "problems": len(ids), "left_out": left_out, **_paired([(first, second)])})
    if not records:
        raise DataError(f"{a} and {b} have no problem in common: {sorted(firsts)} and {sorted(seconds)}")
    if len(records) > 1:
        totals = {key: sum(record[key] for record in records) for key in ("problems", "left_out")}
        records.append({"benchmark": "Avg.", **totals, **_paired(sets)})
    header = ["benchmark", "problems", "a", "b", "b − a", "95 % interval", "p-value"]
    rows = [
        [
            record["benchmark"],
            f"{record['problems']}" + (f" ({record['left_out']} not in both)" if record["left_out"] else ""),
            f"{record['a']:.4f}",
            f"{record['b']:.4f}",
            f"{record['difference']:+.4f}",
            f"{record['interval'][0]:+.4f} to {record['interval'][1]:+.4f}",
            f"{record['p_value']:.4f}",
        ]
        for record in records
    ]
    return Table(header, rows), records


def _paired(sets: list[tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]]) -> dict[str, Any]:
    differences = [second - first for first, second in sets]
    return {
        "a": float(np.mean([first.mean() for first, _ in sets])),
        "b": float(np.mean([second.mean() for _, second in sets])),
        "difference": float(np.mean([values.mean() for values in differences])),
        "interval": interval(differences),
        "p_value": sign_flip_p_value(differences),
    }


class _Problem(NamedTuple):
    """The text of a problem, and the share of right samples."""

    text: str
    share: float


def _problems(folder: Path) -> dict[str, dict[str, _Problem]]:
    """benchmark → problem id → problem."""
    files = sorted((folder / "samples").glob("*.parquet"))
    if not files:
        raise DataError(f"{folder} has no graded samples; give folders that realrl eval wrote (-o)")
    found: dict[str, dict[str, _Problem]] = {}
    for file in files:
        ids, texts, statuses = read_graded(
            file, ("id", "problem", "status"), f"write it again with realrl eval {folder} --regrade"
        )
        right: dict[str, list[bool]] = defaultdict(list)
        for identity, status in zip(ids, statuses, strict=True):
            right[identity].append(status == "correct")
        text_of = dict(zip(ids, texts, strict=True))
        found[file.stem] = {key: _Problem(text_of[key], sum(values) / len(values)) for key, values in right.items()}
    return found
