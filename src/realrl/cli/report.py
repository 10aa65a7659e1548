"""`realrl report` and `realrl watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realrl.cli.common import say


def report(
    runs: Annotated[list[str], typer.Argument(help="Run folders, and folders of realrl eval.", metavar="RUN")],
    output: Annotated[str, typer.Option("-o", help="The HTML file to write.")] = "report.html",
    compare: Annotated[
        str | None, typer.Option(help="A second grader for the rollouts shown: math-verify or deepscaler.")
    ] = None,
) -> None:
    """Write one HTML file that opens offline: curves, scores, evaluations, alarms, recipes and rollouts of some runs."""
    from realrl.report.report import write_report

    size = write_report([Path(run) for run in dict.fromkeys(runs)], Path(output), compare)
    say(f"{output}: {size / 1e6:.1f} MB")


def watch(
    run: Annotated[str, typer.Argument(help="A run folder. It need not exist yet.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 chooses a free one.")] = 0,
) -> None:
    """Serve the report of a run on 127.0.0.1 and refresh it while the run continues; Ctrl-C ends it."""
    from realrl.report.watch import watch as serve

    serve(Path(run), port, lambda url: say(f"{run} at {url} (Ctrl-C ends)"))
