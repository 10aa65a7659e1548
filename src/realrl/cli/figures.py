"""`realrl figures`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from realrl.cli.common import say


def figures(
    output: Annotated[str, typer.Option("-o", help="Folder for the figures, each as PNG, SVG and CSV.")],
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders; runs that differ only in run.seed are averaged.", metavar="[RUN]..."),
    ] = None,
) -> None:
    """Plot the gradient weights of every objective and, for runs, their training dynamics side by side."""
    from realrl.figures.write import write_figures

    report = write_figures(runs or [], Path(output))
    for path in report.written:
        say(str(path))
    for reason in report.skipped:
        say(f"skipped: {reason}", file=sys.stderr)
