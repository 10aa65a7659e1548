"""`realrl figures`: draw all figures for which the runs have data, and say which are missing and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from realrl.figures.distributions import figure_2, score_histograms
from realrl.figures.dynamics import figure_4, figure_5, optimisation
from realrl.figures.weights import weight_figures
from realrl.rundir.runs import RunGroup, broken_lines, group_runs, read_run


@dataclass(slots=True)
class FiguresReport:
    """The written files, and what was left out, with reason and remedy."""

    written: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def write_figures(runs: Sequence[str | Path], folder: Path) -> FiguresReport:
    """Write the gradient weights of all objectives, and the dynamics of `runs` (run folders), to `folder`.

    Raises ConfigError or DataError if a folder is not a run, before anything is written.
    """
    groups = group_runs([read_run(Path(run)) for run in runs])
    report = FiguresReport(written=weight_figures(folder))
    if not groups:
        return report
    report.skipped = [reason for group in groups for reason in _left_out(group)]
    written, skipped = figure_2(groups, folder)
    report.written += written
    report.skipped += skipped
    for draw in (figure_4, figure_5, optimisation, score_histograms):
        done = draw(groups, folder)
        if isinstance(done, str):
            report.skipped.append(done)
        else:
            report.written += done
    return report


def _left_out(group: RunGroup) -> list[str]:
    """Damaged records, and ends of curves that are left out because some runs of a recipe have fewer steps."""
    reasons = [broken_lines(run) for run in group.runs if run.broken]
    ends = {run.folder: run.steps for run in group.runs}
    first, last = min(ends.values()), max(ends.values())
    names = ", ".join(str(folder) for folder, end in ends.items() if end < last)
    if names:
        reasons.append(
            f"curves of {group.label} after step {first} of {last}: {names} has fewer steps; resume it or leave it out"
        )
    return reasons
