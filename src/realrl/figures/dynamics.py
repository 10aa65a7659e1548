"""Curves from metrics.jsonl: the paper's Figures 4 and 5, and metrics of the optimisation.

Runs that differ only in run.seed form one line: their mean, with a 95 % t-interval over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from realrl.figures.canvas import line_style, panels, plain, save, style
from realrl.figures.statistics import half_width
from realrl.rundir.runs import RunGroup, RunRecord

# A curve with more points than this becomes a running mean.
_POINTS = 30


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean over the runs of a group at their common steps, with an interval if there are two or more runs.

    `values` (R runs, S steps) are the values of each run after a running mean over `window` records.
    """

    steps: np.ndarray
    values: np.ndarray
    window: int

    @property
    def mean(self) -> np.ndarray:
        return self.values.mean(axis=0)

    @property
    def half_width(self) -> np.ndarray | None:
        """Half the width of the 95 % t-interval of the mean; None for one run."""
        return half_width(self.values)


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity: title, axis label, and a function from a run to its values by step."""

    title: str
    label: str
    series: Callable[[RunRecord], dict[int, float]]
    smooth: bool = True
    log: bool = False


def curve(group: RunGroup, panel: Panel) -> Curve | None:
    """The group's curve of one quantity; None if no step of all runs records it."""
    found = [panel.series(run) for run in group.runs]
    steps = sorted(set.intersection(*(set(series) for series in found)))
    if not steps:
        return None
    window = max(1, len(steps) // _POINTS) if panel.smooth else 1
    values = np.array([_running_mean([series[step] for step in steps], window) for series in found])
    return Curve(np.array(steps), values, window)


def held_out(run: RunRecord) -> dict[int, float]:
    """Step → sampled held-out Pass@1, averaged over the run's sets, for steps that evaluated all of them."""
    found = [run.series(f"eval/{name}/sampled/accuracy") for name in run.evaluated]
    steps = set.intersection(*(set(series) for series in found)) if found else set()
    return {step: float(np.mean([series[step] for series in found])) for step in sorted(steps)}


def figure_4(groups: Sequence[RunGroup], folder: Path) -> list[Path] | str:
    """Draw entropy, held-out Pass@1, reward and the share of prompts solved by all rollouts; returns paths, or why not."""
    return _curves(
        groups,
        folder,
        "figure_4",
        [
            Panel("Entropy of the policy", "nats per token", _metric("policy/entropy")),
            Panel("Held-out Pass@1", "accuracy", held_out, smooth=False),
            Panel("Training reward", "mean reward", _metric("reward/mean")),
            Panel("Solved by all G rollouts", "share of prompts", _metric("groups/solved_all")),
        ],
    )


def optimisation(groups: Sequence[RunGroup], folder: Path) -> list[Path] | str:
    """Draw gradient norm, response length and truncated share; returns paths, or why not."""
    return _curves(
        groups,
        folder,
        "optimisation",
        [
            Panel("Gradient norm before clipping", "largest of the round's updates", _metric("grad/norm"), log=True),
            Panel("Response length", "tokens, mean", _metric("response/length_mean")),
            Panel("Truncated responses", "share of responses", _metric("response/truncated_share")),
        ],
    )


def figure_5(groups: Sequence[RunGroup], folder: Path) -> list[Path] | str:
    """Draw recipes side by side: held-out Pass@1 at the last evaluation, and mean reward over the last tenth of the steps."""
    if len(groups) < 2:
        return "figure_5 compares recipes but got only one; give runs that differ in more than run.seed"
    columns = [
        (Panel("Held-out Pass@1, last evaluation", "accuracy", held_out, smooth=False), 0.0),
        (Panel("Training reward, last tenth of the steps", "mean reward", _metric("reward/mean"), smooth=False), 0.1),
    ]
    with style():
        figure, axes = panels(1, 2, (4.8, 0.9 + 0.42 * len(groups)), sharey=True)
        data: list[dict[str, Any]] = []
        for axis, (panel, part) in zip(axes, columns, strict=True):
            axis.set(title=panel.title, xlabel=panel.label)
            for row, group in enumerate(groups):
                found = curve(group, panel)
                if found is None:
                    continue
                last = max(1, int(part * len(found.steps)))
                data += _final(axis, row, group, panel.title, found.steps[-last:], found.values[:, -last:].mean(axis=1))
        axes[0].set_yticks(range(len(groups)), [plain(group.label) for group in groups])
        axes[0].set_ylim(len(groups) - 0.5, -0.5)
        if not data:
            return "figure_5 needs eval/*/sampled/accuracy or reward/mean, but no recipe has a step with it in all seeds"
        figure.supxlabel(_intervals(groups, mark="bar"), fontsize=8, color="#555555")
        return save(figure, data, folder, "figure_5")


def _final(axis: Axes, row: int, group: RunGroup, title: str, steps: np.ndarray, values: np.ndarray) -> list[dict[str, Any]]:
    """Draw one recipe: its seeds as small dots below their mean with its interval; returns the rows of the CSV."""
    colour = line_style(row)["color"]
    half, mean = half_width(values), float(values.mean())
    axis.plot(values, [row + 0.22] * len(values), "o", color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
    axis.errorbar(mean, row, xerr=None if half is None else float(half), fmt="D", color=colour, markersize=6, capsize=3)
    common = {"quantity": title, "recipe": group.label, "first_step": int(steps[0]), "last_step": int(steps[-1])}
    each = [
        {**common, "seed": run.config.get("run.seed", ""), "value": float(value), "low": "", "high": ""}
        for run, value in zip(group.runs, values, strict=True)
    ]
    low, high = ("", "") if half is None else (mean - float(half), mean + float(half))
    return [*each, {**common, "seed": "mean", "value": mean, "low": low, "high": high}]


def _curves(groups: Sequence[RunGroup], folder: Path, name: str, quantities: Sequence[Panel]) -> list[Path] | str:
    found = {(panel.title, group.label): curve(group, panel) for panel in quantities for group in groups}
    drawn = [panel for panel in quantities if any(found[panel.title, group.label] for group in groups)]
    if not drawn:
        return f"{name}: no metrics.jsonl has any of its quantities ({', '.join(panel.title for panel in quantities)})"
    with style():
        columns = 2 if len(drawn) % 2 == 0 else len(drawn)
        figure, axes = panels(-(-len(drawn) // columns), columns, (4.4, 3.0) if columns < 3 else (3.7, 3.0))
        data: list[dict[str, Any]] = []
        for axis, panel in zip(axes, drawn, strict=True):
            lines = [(index, group, line) for index, group in enumerate(groups) if (line := found[panel.title, group.label])]
            for index, group, line in lines:
                data += _line(axis, index, group, panel, line)
            window = max(line.window for _, _, line in lines)
            smoothed = f" (running mean of {window})" if window > 1 else ""
            axis.set(title=panel.title, xlabel=f"sampling round{smoothed}", ylabel=panel.label)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if panel.log:
                axis.set_yscale("log")
            _fit(axis, np.concatenate([line.values.ravel() for _, _, line in lines]), log=panel.log)
        handles, labels = _legend(axes)
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4))
        figure.supxlabel(_intervals(groups, mark="band"), fontsize=8, color="#555555")
        return save(figure, data, folder, name)


def _line(axis: Axes, index: int, group: RunGroup, panel: Panel, line: Curve) -> list[dict[str, Any]]:
    look = line_style(index)
    marker = "o" if len(line.steps) < 15 else ""
    axis.plot(line.steps, line.mean, **look, marker=marker, markersize=3.5, label=plain(group.label))
    half = line.half_width
    if half is not None:
        axis.fill_between(line.steps, line.mean - half, line.mean + half, color=look["color"], alpha=0.15, linewidth=0)
    rows = zip(line.steps, line.mean, half if half is not None else [None] * len(line.steps), strict=True)
    return [
        {
            "quantity": panel.title,
            "recipe": group.label,
            "step": int(step),
            "mean": float(mean),
            "low": "" if width is None else float(mean - width),
            "high": "" if width is None else float(mean + width),
            "runs": len(group.runs),
            "window": line.window,
        }
        for step, mean, width in rows
    ]


def _fit(axis: Axes, values: np.ndarray, *, log: bool) -> None:
    """Set limits that show all values of the runs; the interval of few seeds is wide and may be cut off."""
    values = values[values > 0] if log else values
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if log:
        axis.set_ylim(low / 1.2, high * 1.2)
    else:
        margin = 0.05 * (high - low) or 0.05
        axis.set_ylim(low - margin, high + margin)


def _legend(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Each label of any panel once."""
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    return list(entries.values()), list(entries)


def _intervals(groups: Sequence[RunGroup], *, mark: str) -> str:
    counts = sorted({len(group.runs) for group in groups})
    if counts == [1]:
        return "one seed per recipe: no intervals"
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    dots = "small dots: the seeds; " if mark == "bar" else ""
    return f"mean over {number} seeds; {dots}{mark}: 95 % t-interval of the mean"


def _metric(name: str) -> Callable[[RunRecord], dict[int, float]]:
    return lambda run: run.series(name)


def _running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """For each value, the mean of the last `window` values; of fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
