"""`realrl sweep`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from realrl.cli.common import say


def sweep(
    file: Annotated[str, typer.Argument(help="Path of a sweep file (TOML): a base recipe and the changes of each run.")],
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Number of runs at the same time.")] = 1,
    only: Annotated[str, typer.Option(help="Only runs whose name matches this pattern, e.g. 'real-*'.")] = "*",
    list_runs: Annotated[bool, typer.Option("--list", help="List the runs and their status, and run nothing.")] = False,
    table: Annotated[
        str | None, typer.Option(help="Write tables and figures of the finished runs into this folder, and run nothing.")
    ] = None,
) -> None:
    """Run many trainings from one file, each in its own process. An interrupted sweep continues where it stopped.

    Exit status 1 if a run is not finished.
    """
    from realrl.sweep import Progress, load_sweep, run_sweep

    plan = load_sweep(file)
    if table is not None:
        from realrl.sweep.study import study_tables

        say(study_tables(Progress(plan), Path(table)).rstrip("\n"))
        return
    progress = Progress(plan, only) if list_runs else run_sweep(plan, jobs=jobs, only=only)
    say(progress.table().markdown().rstrip("\n"))
    if progress.interrupted:
        say("realrl: interrupted; the same command continues", file=sys.stderr)
        raise typer.Exit(130)
    if not list_runs and any(row["status"] != "finished" for row in progress.rows()):
        raise typer.Exit(1)
