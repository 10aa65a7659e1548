"""`realrl report`: collect the results of runs into the data of one page (assets/, page.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from realrl.errors import DataError
from realrl.report.curves import bands_of, charts_of, curve_of, points_of_a_curve, ratios_of
from realrl.report.evaluations import benchmark_row, held_out_rows, paper_tables
from realrl.report.page import render_page
from realrl.report.pictures import pictures_of
from realrl.report.rollouts import mark_disagreements, sample_rollouts
from realrl.rundir.runs import RunGroup, RunRecord, as_text, broken_lines, differing, group_runs, read_run

# Maximum number of characters of all rollouts in the page, so that the page stays below 5 MB.
_ROLLOUT_BUDGET = 2_800_000


def write_report(folders: Sequence[Path], output: Path, compare: str | None = None) -> int:
    """Write the report of `folders` (runs, or results of `realrl eval`) as one HTML file; returns its size in bytes.

    With `compare`, a second grader also grades the rollouts on the page. Raises DataError for a folder that is neither, for an
    unknown grader, and if the file cannot be written.
    """
    data = report_data(folders)
    if compare is not None:
        for run in data["rollouts"]:
            mark_disagreements(run["rows"], compare)
    page = render_page(data).encode("utf-8")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(page)
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror}; choose another file with -o") from error
    return len(page)


def report_data(folders: Sequence[Path]) -> dict[str, Any]:
    """All data of the page, as values ready for JSON; NaN and infinities become None."""
    evaluated = [folder for folder in folders if (folder / "results.json").is_file()]
    runs = [read_run(folder) for folder in folders if folder not in evaluated]
    evaluated += [path.parent for run in runs for path in sorted(run.folder.glob("eval/*/results.json"))]
    groups = group_runs(runs)
    points = points_of_a_curve(len(groups))
    return _json_ready(
        {
            "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs" if runs else "Evaluations",
            "made": time.time(),
            "series": [
                _series(group, points) | {"bands": bands_of(group.runs), "ratios": ratios_of(group.runs)} for group in groups
            ],
            "charts": charts_of(runs),
            "common": _common_facts(runs),
            "differences": _differences([group.config for group in groups]),
            "changes": [
                {
                    "run": run.name,
                    "step": change.step,
                    "key": change.key,
                    "values": [None if value is None else as_text(value) for value in (change.before, change.after)],
                }
                for run in runs
                for change in run.changes
            ],
            "heldOut": [row for group in groups for row in held_out_rows(group)],
            "benchmarks": [benchmark_row(folder) for folder in evaluated],
            "paper": paper_tables(),
            "pictures": pictures_of(groups),
            "alarms": [
                {"run": run.name, "step": step, "text": text} for run in runs for step, text in _merged(run.alarms, run.steps)
            ],
            "rollouts": [
                {"run": run.name, **sampled}
                for run in runs
                if (sampled := sample_rollouts(run, _ROLLOUT_BUDGET // len(runs))) is not None
            ],
        }
    )


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"key": key, "values": [as_text(config[key]) if key in config else None for config in configs]}
        for key in differing(configs)
    ]


def _series(group: RunGroup, points: int) -> dict[str, Any]:
    names = sorted({name for run in group.runs for name in run.metrics})
    total = group.config.get("train.steps", 0)
    return {
        "label": group.label,
        "runs": [
            {
                "name": run.name,
                "seed": run.config.get("run.seed"),
                "steps": run.steps,
                "total": total if isinstance(total, int) else 0,
                "started": run.environment[0].get("started") if run.environment else None,
                "last": run.times[-1] if run.times else None,
                "seconds": _duration(run),
            }
            for run in group.runs
        ],
        "curves": {name: curve for name in names if (curve := curve_of(group.runs, name, points))},
    }


def _common_facts(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The facts of the summary in reading order, each with all its values among the runs."""
    facts: dict[str, set[str]] = {}
    for run in runs:
        for name, value in _facts(run):
            facts.setdefault(name, set()).add(value)
    return [{"name": name, "values": sorted(values)} for name, values in facts.items()]


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    facts = _over_segments(run)
    if run.broken:
        facts.append(("Left out", broken_lines(run)))
    if not run.environment:
        return [*facts, ("Hardware and versions", "not recorded")]
    e = run.environment[-1]
    gpus = e.get("gpus") or []
    hardware = f"{len(gpus)} × {gpus[0]}" if gpus else f"{e.get('cpu') or 'CPU'}, {e.get('cpus')} cores"
    ranks = f", {e['ranks']} ranks" if e.get("ranks", 1) != 1 else ""
    packages = ", ".join(f"{name} {version}" for name, version in (e.get("packages") or {}).items())
    commit = e.get("commit")
    return [
        *facts,
        ("Hardware", hardware + ranks),
        ("System", str(e.get("platform"))),
        ("Versions", f"realrl {e.get('realrl')}, Python {e.get('python')}, {packages}"),
        ("Commit", f"{commit}{' with changes' if e.get('changed') else ''}" if commit else "not a git checkout"),
    ]


def _over_segments(run: RunRecord) -> list[tuple[str, str]]:
    """Facts of the recipe, with earlier values if the run was resumed with other ones."""
    found: dict[str, list[tuple[str, str]]] = {}
    for until, config in [*((f" (to step {last})", recipe) for last, recipe in run.earlier), ("", run.config)]:
        for name, value in _recipe_facts(config):
            values = found.setdefault(name, [])
            if values and values[-1][0] == value:
                values.pop()
            values.append((value, until))
    return [(name, "; then ".join(value + until for value, until in values)) for name, values in found.items()]


def _recipe_facts(c: Mapping[str, Any]) -> list[tuple[str, str]]:
    off = c.get("objective.kl.target") == "none"
    objective = [
        f"{key.removeprefix('objective.')} = {as_text(value)}"
        for key, value in c.items()
        if key.startswith("objective.") and key != "objective.type" and not (off and key.startswith("objective.kl."))
    ]
    return [
        ("Model", f"{c.get('model.path')}, {c.get('model.dtype')}"),
        ("Data", f"{c.get('data.train')}; held out: {', '.join(map(as_text, c.get('data.eval') or ['none']))}"),
        ("Reward", str(c.get("reward.type"))),
        ("Objective", f"{c.get('objective.type')} ({', '.join(objective)})"),
        (
            "Batch",
            f"{c.get('train.prompts_per_step')} prompts × {c.get('sampling.group_size')} rollouts per sampling round, "
            f"{c.get('train.mini_batch_prompts')} prompts per update",
        ),
        ("Optimizer", f"{c.get('optim.type')}, lr {c.get('optim.lr')}, {c.get('optim.schedule')}"),
    ]


def _duration(run: RunRecord) -> float | None:
    """Seconds from each start to its last valid record; None if no start was recorded."""
    # time/run_s grows until the run is started again. Older runs do not have it, only wall-clock times.
    clock = [seconds for _, seconds in sorted(run.series("time/run_s").items())]
    if clock:
        return sum(now for now, later in zip(clock, [*clock[1:], 0.0], strict=True) if later < now)
    starts = [entry["started"] for entry in run.environment if entry["started"] is not None]
    if not starts or not run.times:
        return None
    ends = [*starts[1:], math.inf]
    return sum(
        max((t for t in run.times if start <= t < end), default=start) - start for start, end in zip(starts, ends, strict=True)
    )


def _merged(alarms: Sequence[tuple[int, str]], steps: int) -> list[tuple[int, str]]:
    """Each alarm once, up to the last step: a resumed run repeats steps, and alarms of steps not yet repeated do not count."""
    return sorted({(step, text) for step, text in alarms if step <= steps})


def _json_ready(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) and abs(value) < 1e8 else value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    return value
