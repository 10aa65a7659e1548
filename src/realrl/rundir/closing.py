"""What is said at the end of a run: of the whole run, from its folder, however often it was resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from realrl.rundir.alarms import read_alarms
from realrl.rundir.metrics import is_accuracy, read_records
from realrl.rundir.paths import RunPaths
from realrl.rundir.runs import as_number, read_columns

# Different alarms that are shown; alarms.txt has all.
_ALARMS = 5


def closing_lines(folder: Path, examples: int) -> list[str]:
    """Held-out accuracy before and after, `examples` problems with both answers, and what rang."""
    evaluations: dict[str, dict[int, dict[str, Any]]] = {}
    for record in read_records(RunPaths(folder).metrics)[0]:
        for name in (name for name, value in record.items() if is_accuracy(name) and as_number(value) is not None):
            evaluations.setdefault(name.removesuffix("/accuracy"), {})[record["step"]] = record
    lines = []
    for prefix, records in evaluations.items():
        first, last = min(records), max(records)
        if first == last:
            continue
        name, mode = prefix.removeprefix("eval/").rsplit("/", 1)
        before, after = (
            {
                key: as_number(records[step].get(f"{prefix}/{key}")) or 0.0
                for key in ("accuracy", "standard_error", "boxed_share")
            }
            for step in (first, last)
        )
        lines.append(
            f"held-out accuracy, {name}, {mode}: {before['accuracy']:.3f} ± {before['standard_error']:.3f} (step {first}) → "
            f"{after['accuracy']:.3f} ± {after['standard_error']:.3f} (step {last}), "
            f"gain {after['accuracy'] - before['accuracy']:+.3f}; "
            f"answers in a box: {before['boxed_share']:.2f} → {after['boxed_share']:.2f}"
        )
        if mode == "sampled":
            lines += _examples(_rows(folder, name, mode, first), _rows(folder, name, mode, last), examples)
    texts: dict[str, int] = {}
    for step, text in read_alarms(RunPaths(folder).alarms):
        texts.setdefault(text, step)
    lines += [f"alarm, step {step}: {text}" for text, step in list(texts.items())[:_ALARMS]]
    return [*lines, f"{len(texts) - _ALARMS} more alarms in {RunPaths(folder).alarms}"] if len(texts) > _ALARMS else lines


def _rows(folder: Path, name: str, mode: str, step: int) -> dict[str, dict[str, str]]:
    """The first sample of each problem, by the problem's id; none where the file cannot be read."""
    columns = ("id", "problem", "answer", "response", "status")
    found = read_columns(RunPaths(folder).evaluation_of(name, mode, step), columns)
    rows: dict[str, dict[str, str]] = {}
    if found and len(found) == len(columns):
        for values in zip(*(found[column] for column in columns), strict=True):
            rows.setdefault(values[0], dict(zip(columns, map(str, values), strict=True)))
    return rows


def _examples(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]], count: int) -> list[str]:
    """Problems of both evaluations, first those of which one answer is right and the other is not."""
    pairs = [(old, after[key]) for key, old in before.items() if key in after]
    pairs.sort(key=lambda pair: (pair[0]["status"] == "correct") == (pair[1]["status"] == "correct"))
    return [
        line
        for old, new in pairs[:count]
        for line in (
            f"  {old['problem']}  gold {old['answer']}",
            f"    before: {old['response']:.100} [{old['status']}]",
            f"    after:  {new['response']:.100} [{new['status']}]",
        )
    ]
