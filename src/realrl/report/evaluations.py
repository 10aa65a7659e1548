"""The evaluations in a report: held-out accuracy during training, results of `realrl eval`, and the paper's tables."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from realrl.errors import DataError
from realrl.eval.benchmarks import COLUMNS, PAPER_ROWS, PAPER_SOURCE, paper_column
from realrl.eval.intervals import interval
from realrl.figures.statistics import NORMAL, mean_of
from realrl.report.curves import set_name
from realrl.rundir.metrics import is_accuracy
from realrl.rundir.paths import RunPaths
from realrl.rundir.runs import RunGroup, RunRecord, read_columns


def held_out_rows(group: RunGroup) -> list[dict[str, Any]]:
    """The accuracy of a recipe's runs at the first and the last evaluation, with an interval for the last."""
    rows, runs = [], group.runs
    for name in sorted({name for run in runs for name in run.metrics if is_accuracy(name)}):
        curves = [values for run in runs if (values := run.metrics.get(name))]
        first, last = [values[min(values)] for values in curves], [values[max(values)] for values in curves]
        mean, low, high = astuple(mean_of(last))
        over = f"{len(curves)} seeds"
        if len(curves) == 1:
            run = next(run for run in runs if name in run.metrics)
            over, low, high = _interval_over_problems(run, name, max(curves[0]))
        steps = sorted({max(values) for values in curves})
        rows.append(
            {
                "series": group.label,
                "set": set_name(name),
                "before": mean_of(first).value if any(len(values) > 1 for values in curves) else None,
                "after": mean,
                "low": None if low is None else max(low, 0.0),
                "high": None if high is None else min(high, 1.0),
                "over": over,
                "steps": f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}",
            }
        )
    return rows


def benchmark_row(folder: Path) -> dict[str, Any]:
    """One evaluation by `realrl eval`; raises DataError if results.json does not have its format."""
    path = folder / "results.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        cells = {
            name: _pass_at_1(figures) | {key: int(figures[key]) for key in ("problems", "samples_each")}
            for name, figures in report["results"].items()
        }
        cells |= {"Avg.": _pass_at_1(report["average"])} if len(cells) > 1 else {}
        return {"model": str(report["model"]), "folder": folder.name, "cells": cells}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(
            f"{path} is not what realrl eval writes ({error}); write it again: realrl eval --regrade {folder}"
        ) from error


def _pass_at_1(figures: dict[str, Any]) -> dict[str, Any]:
    low, high = figures["interval"]
    return {"accuracy": float(figures["accuracy"]), "interval": (float(low), float(high))}


def paper_tables() -> dict[str, Any]:
    """The paper's tables, and the column of each of our benchmarks in them."""
    benchmarks = {name: column for names in COLUMNS.values() for name in names if (column := paper_column(name))}
    rows = [{"table": row.table, "name": row.name, "values": row.values, "cited": row.cited} for row in PAPER_ROWS]
    return {"columns": [*COLUMNS, "Avg."], "of": benchmarks, "rows": rows, "source": PAPER_SOURCE}


def _interval_over_problems(run: RunRecord, name: str, step: int) -> tuple[str, float | None, float | None]:
    """The bootstrap interval over the problems of a stored evaluation; if the file is missing, one from the standard error."""
    data_set, mode, _ = name.removeprefix("eval/").rsplit("/", 2)
    columns = read_columns(RunPaths(run.folder).evaluation_of(data_set, mode, step), ("id", "status"))
    if columns and len(columns) == 2 and columns["id"]:
        right: dict[str, list[bool]] = {}
        for key, status in zip(columns["id"], columns["status"], strict=True):
            right.setdefault(key, []).append(status == "correct")
        return f"{len(right)} problems", *interval([np.array([np.mean(found) for found in right.values()])])
    error = run.metrics.get(name.removesuffix("accuracy") + "standard_error", {}).get(step)
    if error is None:
        return "not recorded", None, None
    mean = run.metrics[name][step]
    return "problems (normal)", mean - NORMAL * error, mean + NORMAL * error
