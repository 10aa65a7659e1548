"""Distributions in saved rollouts: token ratios (the paper's Figure 2), and scores s̄ and gradient weights over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator

from realrl.figures.canvas import RIGHT, WRONG, panels, plain, save, style
from realrl.figures.ratios import CLIPS, EPSILON, INTERVALS, RatioCounts, ratio_counts
from realrl.objectives import BCEConfig, RealConfig, ScoreObjective, build_objective
from realrl.rundir.runs import RunGroup

_SIGNS = ("A > 0", "A < 0")
_BINS = 41
_COLUMNS = 40


def figure_2(groups: Sequence[RunGroup], folder: Path) -> tuple[list[Path], list[str]]:
    """Share of tokens by interval of ρ and sign of the advantage, and the share that clipping at 1 ± 0.2 would drop."""
    counts: dict[str, RatioCounts] = {}
    skipped = []
    for group in groups:
        found = ratio_counts(table for run in group.runs for table in run.rollouts(["group", "reward", "log_ratio"]))
        if found is None:
            skipped.append(f"figure_2 of {group.label}: rollouts/*.parquet have no log_ratio; train with --log.tokens true")
        elif not found.tokens.any():
            skipped.append(f"figure_2 of {group.label}: no group has different rewards, so all advantages are 0")
        else:
            counts[group.label] = found
    if not counts:
        return [], skipped
    with style():
        figure, axes = panels(len(counts), 2, (5.0, 3.1), sharey="col", gridspec_kw={"width_ratios": [2.2, 1]})
        data: list[dict[str, Any]] = []
        for row, (label, found) in enumerate(counts.items()):
            left, right = axes[2 * row : 2 * row + 2]
            left.set_yscale("log")
            data += _bars(left, label, "interval", INTERVALS, found.intervals, found.tokens)
            data += _bars(right, label, "dropped", CLIPS, found.dropped, found.tokens)
            left.set_title(f"{plain(label)}: {found.tokens.sum():,} tokens", loc="left")
            right.set_title(f"dropped by clipping at 1 ± {EPSILON:g}", loc="left")
            left.set_ylabel("share of tokens with this sign")
            left.set_ylim(top=3)
            right.margins(y=0.2)
        left, right = axes[-2:]
        left.set_xlabel("ratio $\\rho = \\pi_\\theta / \\pi_{old}$ of a token, before its optimizer step")
        right.set_xlabel("kind of clipping")
        axes[0].legend(loc="upper right", title="advantage", alignment="left")
        return save(figure, data, folder, "figure_2"), skipped


def score_histograms(groups: Sequence[RunGroup], folder: Path) -> list[Path] | str:
    """Histograms over time of s̄ and of the gradient weights, for right and wrong rollouts that have a gradient."""
    found = {group.label: (group, _scores(group)) for group in groups}
    found = {label: (group, rows) for label, (group, rows) in found.items() if len(rows["step"])}
    if not found:
        return "scores: no rollouts/*.parquet has a rollout with a gradient; train with log.rollouts = true"
    with style():
        figure, axes = panels(len(found), 4, (3.1, 2.6))
        data: list[dict[str, Any]] = []
        for row, (label, (group, rows)) in enumerate(found.items()):
            scaled, name, bound = _weight_scale(group, rows["weight"])
            reach = max(float(np.abs(rows["score"]).max()), 1e-3)
            top = bound or max(float(scaled.max()), 1e-12)
            quantities = [("mean log-ratio $\\bar{s}$ (nats)", rows["score"], -reach, reach), (name, scaled, 0.0, 1.02 * top)]
            for number, (quantity, values, low, high) in enumerate(quantities):
                for column, positive in enumerate((True, False)):
                    axis = axes[4 * row + 2 * number + column]
                    chosen = rows["right"] == positive
                    cells = _heat(axis, rows["step"], chosen, values, (low, high), RIGHT if positive else WRONG)
                    keys = {"recipe": label, "quantity": "score" if number == 0 else "weight", "reward": int(positive)}
                    data += [keys | cell for cell in cells]
                    axis.set_title(f"{plain(label)}, {'right' if positive else 'wrong'}", loc="left")
                    axis.set(ylabel=quantity, xlabel="sampling round")
                    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        note = "colour: share of the round's rollouts, darker is more; only rollouts with a gradient"
        figure.supxlabel(note, fontsize=8, color="#555555")
        return save(figure, data, folder, "scores")


def _bars(
    axis: Axes, label: str, part: str, names: Sequence[str], counts: np.ndarray, tokens: np.ndarray
) -> list[dict[str, Any]]:
    """Draw two bars for each name, one for each sign; returns the rows of the CSV."""
    rows = []
    for side, (sign, colour, hatch) in enumerate(zip(_SIGNS, (RIGHT, WRONG), ("", "///"), strict=True)):
        shares = counts[side] / max(int(tokens[side]), 1)
        places = np.arange(len(names)) + (side - 0.5) * 0.4
        axis.bar(places, shares, width=0.38, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=sign)
        for place, share in zip(places, shares, strict=True):
            if share:
                axis.annotate(f"{100 * share:.2g}%", (place, share), **_ABOVE_THE_BAR)
        rows += [
            {"recipe": label, "part": part, "name": name, "sign": sign, "tokens": int(count), "share": float(share)}
            for name, count, share in zip(names, counts[side], shares, strict=True)
        ]
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axis.set_xticks(range(len(names)), names)
    axis.grid(visible=False, axis="x")
    return rows


_ABOVE_THE_BAR: dict[str, Any] = {
    "xytext": (0, 2),
    "textcoords": "offset points",
    "ha": "center",
    "fontsize": 7,
}


def _scores(group: RunGroup) -> dict[str, np.ndarray]:
    """step, right, score and weight of all saved rollouts that have a gradient (scores of others were not computed)."""
    parts: dict[str, list[np.ndarray]] = {"step": [], "right": [], "score": [], "weight": []}
    for table in (table for run in group.runs for table in run.rollouts(["step", "reward", "score", "weight"])):
        step, reward, score, weight = (table[name].to_numpy() for name in ("step", "reward", "score", "weight"))
        # Scores and weights may be NaN in a mini-batch whose update was skipped.
        kept = (weight != 0) & np.isfinite(score) & np.isfinite(weight)
        for name, values in (("step", step), ("right", reward > 0), ("score", score), ("weight", weight)):
            parts[name].append(values[kept])
    return {name: np.concatenate(values) if values else np.zeros(0) for name, values in parts.items()}


def _weight_scale(group: RunGroup, weights: np.ndarray) -> tuple[np.ndarray, str, float | None]:
    """|weights|, their name and bound. For REAL and BCE they are multiplied by P, as the paper's W; else no bound is known."""
    recipe = group.runs[0].recipe()
    objective = recipe.objective
    if isinstance(objective, RealConfig | BCEConfig):
        return np.abs(weights) * recipe.train.mini_batch_prompts, "$|W|$ (bound 1/τ)", 1 / objective.tau
    known = isinstance(build_objective(objective), ScoreObjective)
    return np.abs(weights), "$|\\partial L/\\partial s|$" if known else "advantage $|A|$", None


def _heat(
    axis: Axes, step: np.ndarray, chosen: np.ndarray, values: np.ndarray, limits: tuple[float, float], colour: str
) -> list[dict[str, Any]]:
    """Draw a histogram for each range of steps as a column with sum 1; returns the cells that are not empty."""
    first, last = int(step.min()), int(step.max())
    width = -(-(last - first + 1) // _COLUMNS)
    x_edges = np.arange(first, last + width + 1, width)
    y_edges = np.linspace(*limits, _BINS + 1)
    counts, _, _ = np.histogram2d(step[chosen], values[chosen], bins=(x_edges, y_edges))
    total = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    shades = LinearSegmentedColormap.from_list("shades", ["white", colour, "black"])
    axis.pcolormesh(x_edges - 0.5, y_edges, shares.T, cmap=shades, norm=PowerNorm(0.5, 0, 1), rasterized=True)
    axis.grid(visible=False)
    return [
        {
            "first_step": int(x_edges[i]),
            "last_step": int(x_edges[i + 1] - 1),
            "low": float(y_edges[j]),
            "high": float(y_edges[j + 1]),
            "rollouts": int(counts[i, j]),
            "share": float(shares[i, j]),
        }
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]
