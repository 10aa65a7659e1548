"""`realrl sweep`: run what is not finished yet, report how each run ended, and choose tuned values."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from realrl.errors import ConfigError
from realrl.eval.tables import Table
from realrl.models import layer_shape
from realrl.models.precision import has_auto, settle
from realrl.rundir.paths import RunPaths
from realrl.sweep.outcome import Outcome, Tuned, outcome, tuned
from realrl.sweep.plan import Plan, PlannedRun
from realrl.sweep.processes import Interrupt, Job, run_all
from realrl.system.files import write_whole
from realrl.system.hardware import Rates, choose_device, measure_rates
from realrl.system.terminal import printable

SUMMARY = "summary.json"
# Measured speeds of the machine on which the sweep began.
RATES = "rates.json"


class Progress:
    """The state of all runs of a sweep, as stored in `summary.json` and shown in the table."""

    def __init__(self, plan: Plan, only: str = "*") -> None:
        self.plan = plan
        self.interrupted = False
        self._only = only
        if not any(fnmatch.fnmatch(name, only) for name in self._names()):
            raise ConfigError(f"--only {only!r} matches no run of {plan.path}; it has {', '.join(self._names())}")
        self._outcomes: dict[str, Outcome] = {}
        self._failed = _failures(plan.dir / SUMMARY)
        self._ended = set(self._failed)
        for run in plan.tuning:
            self.look(run)
        for run in self.final_runs():
            self.look(run)

    def look(self, run: PlannedRun) -> Outcome:
        """Read the state of the run from its folder again."""
        found = self._outcomes[run.name] = outcome(run, checkpoints=self.plan.file.checkpoints)
        if found.state == "finished":
            self._failed.pop(run.name, None)
            self._ended.add(run.name)
        return found

    def fail(self, run: PlannedRun, why: str) -> None:
        """Record why a run ended before it was finished."""
        self._failed[run.name] = why
        self._ended.add(run.name)

    def grid(self) -> list[Tuned]:
        """The tuning grid with the results so far."""
        return tuned(self.plan, {name: found.accuracy for name, found in self._outcomes.items()}, self._ended)

    def final_runs(self) -> tuple[PlannedRun, ...]:
        """The runs to compare whose tuned value is known."""
        return self.plan.final({cell.variant: cell.value for cell in self.grid() if cell.chosen})

    def to_do(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """The runs that match `only` and are neither finished nor refused."""
        wanted = [run for run in runs if fnmatch.fnmatch(run.name, self._only)]
        return [run for run in wanted if self.look(run).state in ("new", "unfinished")]

    def rows(self) -> list[dict[str, Any]]:
        """One record for each run that matches `only`: name, status, accuracy, seconds, step of a collapse or 0, detail."""
        return [self._row(name) for name in self._names() if fnmatch.fnmatch(name, self._only)]

    def _names(self) -> list[str]:
        return [*(run.name for run in self.plan.tuning), *self.plan.final_names]

    def _row(self, name: str) -> dict[str, Any]:
        found = self._outcomes.get(name)
        if found is None:
            status, detail, found = (
                "waiting",
                f"needs the tuned {self.plan.file.tune.key}" if self.plan.file.tune else "",
                Outcome("new"),
            )
        elif name in self._failed:
            status, detail = "failed", self._failed[name]
        else:
            status, detail = {"new": "not run"}.get(found.state, found.state), found.detail
        if status == "unfinished":
            detail = f"at step {found.step}"
        return {
            "name": name,
            "status": status,
            "accuracy": found.accuracy,
            "seconds": round(found.seconds, 1),
            "collapsed": found.collapsed,
            "detail": detail,
        }

    def write(self) -> Path:
        """Write the summary of all runs, also of those that do not match `only`, next to their folders."""
        path = self.plan.dir / SUMMARY
        chosen = {cell.variant: cell.value for cell in self.grid() if cell.chosen}
        summary = {"sweep": str(self.plan.path), "tuned": chosen, "runs": [self._row(name) for name in self._names()]}
        write_whole(path, json.dumps(summary, indent=1) + "\n")
        return path

    def table(self) -> Table:
        """The summary as a table."""
        rows = []
        for row in self.rows():
            accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
            status = row["status"] + (f", collapsed at step {row['collapsed']}" if row["collapsed"] else "")
            rows.append([row["name"], status, accuracy, clock(row["seconds"]), printable(row["detail"])[:120]])
        return Table(["run", "status", "held-out accuracy", "training time", "detail"], rows)


def run_sweep(plan: Plan, *, jobs: int = 1, only: str = "*") -> Progress:
    """Run a sweep: first the tuning runs, then the runs to compare. A failed run does not stop the others.

    Finished runs are not touched; others continue from their newest checkpoint or start again. After Ctrl-C it ends once the
    runs in progress have saved, and the result is `interrupted`.
    """
    progress = Progress(plan, only)
    logs = plan.dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with Interrupt() as interrupt:
        for stage in (lambda: plan.tuning, progress.final_runs):
            _run_stage(progress, stage(), jobs, logs, interrupt)
        progress.write()
        progress.interrupted = bool(interrupt.count)
    return progress


def _settled(runs: Sequence[PlannedRun], folder: Path) -> list[PlannedRun]:
    """The runs with every precision "auto" decided once for the whole sweep, from rates that are stored in `folder`."""
    path = folder / RATES
    known: dict[str, Rates] = {}
    # If the file is missing or damaged, the rates are measured again.
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        known = {name: Rates.read(record) for name, record in json.loads(path.read_text()).items()}
    settled = []
    for run in runs:
        model = run.config.model
        if not has_auto(run.config):
            settled.append(run)
            continue
        name = f"{model.path} on {model.device}"
        if name not in known:
            shape = layer_shape(model.path, trust_remote_code=model.trust_remote_code)
            known[name] = measure_rates(choose_device(model.device), *shape)
            write_whole(path, json.dumps({name: asdict(rates) for name, rates in known.items()}, indent=1) + "\n")
        settled.append(replace(run, config=settle(run.config, known[name])))
    return settled


def _run_stage(progress: Progress, runs: Sequence[PlannedRun], jobs: int, logs: Path, interrupt: Interrupt) -> None:
    queue = _settled(progress.to_do(runs), progress.plan.dir)
    if runs:
        print(f"{len(queue)} runs to do; {len(runs) - len(queue)} are finished, refused or left out", flush=True)
    walls: list[float] = []
    ended = 0

    def on_end(job: Job, status: int) -> None:
        nonlocal ended
        ended += 1
        found = progress.look(job.run)
        text = f"{job.run.name}: {found.state}"
        if found.state == "finished":
            walls.append(job.seconds)
            text += f", held-out accuracy {found.accuracy:.3f}" if found.accuracy is not None else ""
            text += f", collapsed at step {found.collapsed}" if found.collapsed else ""
            if not progress.plan.file.checkpoints:
                shutil.rmtree(RunPaths(job.run.folder).checkpoints, ignore_errors=True)
        elif not interrupt.count:
            why = f"exit status {status}: {_last_line(job.log)}"
            progress.fail(job.run, why)
            text = f"{job.run.name}: failed, {why}"
        left = len(queue) - ended
        rest = f"; {left} left, about {clock(sum(walls) / len(walls) * left / jobs)}" if walls and left else ""
        print(f"[{ended}/{len(queue)}] {text}, {clock(job.seconds)}{rest}", flush=True)
        progress.write()

    def on_busy(run: PlannedRun) -> None:
        nonlocal ended
        ended += 1
        print(f"[{ended}/{len(queue)}] {run.name}: skipped, another process runs it", flush=True)

    run_all(
        queue,
        jobs,
        logs,
        interrupt,
        still_to_do=lambda run: progress.look(run).state in ("new", "unfinished"),
        on_start=lambda run: print(f"{time.strftime('%H:%M:%S')} starting {run.name}", flush=True),
        on_busy=on_busy,
        on_end=on_end,
    )


def _failures(summary: Path) -> dict[str, str]:
    """The runs that failed in the last sweep of the folder, and why. A sweep tries them again; tables count them as ended."""
    if not summary.is_file():
        return {}
    try:
        rows = json.loads(summary.read_text(encoding="utf-8"))["runs"]
        return {str(row["name"]): str(row["detail"]) for row in rows if row["status"] == "failed"}
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}  # the summary is written again after every run


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return printable(lines[-1].strip()) if lines else ""


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
