"""Read a run's state from its folder: how far it came, and its held-out accuracy."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from realrl.config import dump_config, flatten, load_config
from realrl.errors import ConfigError
from realrl.models.precision import settle_as_before
from realrl.rundir.alarms import Alarms
from realrl.rundir.metrics import read_records
from realrl.rundir.paths import RunPaths, is_run_folder
from realrl.rundir.runs import as_number
from realrl.sweep.plan import Plan, PlannedRun

State = Literal["new", "unfinished", "finished", "refused"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state of a run. `accuracy` is the sampled accuracy at the last step, averaged over the held-out sets.

    `seconds` is the time of its training steps, `collapsed` the step of its first collapse alarm, or 0. A run is refused if
    its folder has another config or is not a run folder; `detail` says why and what to do.
    """

    state: State
    step: int = 0
    accuracy: float | None = None
    seconds: float = 0.0
    detail: str = ""
    collapsed: int = 0


def outcome(run: PlannedRun, *, checkpoints: bool) -> Outcome:
    """The state of a run. It is finished if its folder has the last step with all its evaluations and, with `checkpoints`,
    its checkpoint."""
    if not run.folder.exists():
        return Outcome("new")
    if difference := _difference(run):
        remedy = f"remove {run.folder} to run it again, or give the sweep another dir"
        return Outcome("refused", detail=f"{difference}; {remedy}")
    paths = RunPaths(run.folder)
    records, _ = read_records(paths.metrics)
    trained = {record["step"]: as_number(record.get("time/step_s")) or 0.0 for record in records if record["kind"] == "round"}
    steps = run.config.train.steps
    evaluated = {
        key: number
        for record in records
        if record["step"] == steps
        for key, value in record.items()
        if (number := as_number(value)) is not None
    }
    modes = ("sampled", "greedy") if run.config.eval.greedy else ("sampled",)
    wanted = [f"eval/{name}/{mode}/accuracy" for name in run.config.data.eval for mode in modes]
    complete = steps in trained and all(key in evaluated for key in wanted)
    saved = not checkpoints or paths.has_checkpoint(steps)
    accuracies = [evaluated[key] for key in wanted if "/sampled/" in key and key in evaluated]
    return Outcome(
        "finished" if complete and saved else "unfinished",
        step=max(trained, default=0),
        accuracy=mean(accuracies) if complete and accuracies else None,
        seconds=sum(trained.values()),
        collapsed=_collapse(records),
    )


def _collapse(records: Iterable[Mapping[str, Any]]) -> int:
    alarms = Alarms()
    return next((record["step"] for record in records for alarm in alarms.check(record) if alarm.kind == "collapse"), 0)


def can_resume(folder: Path) -> bool:
    """Whether the folder has a complete checkpoint."""
    return RunPaths(folder).has_checkpoint()


@dataclass(frozen=True, slots=True)
class Tuned:
    """One value of the tuned key for one variant: the accuracies of its finished runs by seed, and whether it was chosen."""

    variant: str
    value: str
    accuracies: Mapping[int, float]
    chosen: bool


def tuned(plan: Plan, accuracies: Mapping[str, float | None], ended: Iterable[str]) -> list[Tuned]:
    """The tuning grid with each variant's choice: the value with the best mean over the seeds, the first if several are equal.

    `accuracies` maps names of finished runs to their accuracy. A variant has a choice once all its runs have `ended`; a value
    with an unfinished run cannot be chosen.
    """
    tune, ended = plan.file.tune, set(ended)
    if tune is None:
        return []
    cells: dict[str, dict[str, dict[int, float]]] = {}
    pending: set[str] = set()
    for run in plan.tuning:
        cell = cells.setdefault(run.setting, {}).setdefault(str(run.value), {})
        accuracy = accuracies.get(run.name)
        if accuracy is not None:
            cell[run.seed] = accuracy
        if run.name not in ended:
            pending.add(run.setting)
    grid = []
    for variant, values in cells.items():
        whole = {value: mean(cell.values()) for value, cell in values.items() if len(cell) == len(tune.seeds)}
        best = max(whole, key=lambda value: whole[value]) if whole and variant not in pending else None
        grid += [Tuned(variant, value, cell, value == best) for value, cell in values.items()]
    return grid


def _difference(run: PlannedRun) -> str:
    """How the folder's config differs from the plan's, as text. Empty if it does not, or only in logs and checkpoints, which
    do not affect the weights."""
    path = RunPaths(run.folder).config
    if not path.is_file():
        return "" if is_run_folder(run.folder) else f"{run.folder} is not a run folder (no config.toml)"
    try:
        found = load_config(path)
        planned = settle_as_before(run.config, found)
    except ConfigError as error:
        return f"its config.toml cannot be read ({error})"
    before, now = (flatten(tomllib.loads(dump_config(config))) for config in (found, planned))
    changed = [
        f"{key} = {before.get(key)!r} (the sweep has {now.get(key)!r})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(("log.", "checkpoint."))
    ]
    if not changed:
        return ""
    return f"its folder was made with {', '.join(changed[:3])}" + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
