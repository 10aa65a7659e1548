"""The curves of a report: means over seeds with intervals, and quantiles of scores and weights, reduced to fit the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realrl.figures.ratios import ABOVE, BELOW, EPSILON, token_ratios
from realrl.figures.statistics import NORMAL, mean_of
from realrl.rundir.metrics import is_accuracy
from realrl.rundir.runs import RunRecord, rollout_numbers

# A curve has at most the first number of points; if many series share the page, it has fewer.
_MOST_POINTS, _POINTS_OF_ALL_SERIES = 400, 1600
_BAND_STEPS = 200
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of metrics that share an axis. `share` means that values are in [0, 1]."""

    title: str
    metrics: tuple[str, ...]
    about: str
    share: bool = False


CHARTS = (
    Chart("Reward", ("reward/mean",), "mean over the rollouts of a step"),
    Chart("Solved by all rollouts", ("groups/solved_all",), "share of prompts whose rollouts are all right", share=True),
    Chart("Mixed groups", ("groups/mixed",), "share of prompts with right and wrong rollouts, which can teach", share=True),
    Chart("Entropy", ("policy/entropy",), "of the next-token distribution, in nats"),
    Chart("Gradient norm", ("grad/norm",), "largest of the step's updates, before clipping"),
    Chart("Loss", ("loss",), "mean over the step's updates"),
    Chart("Response length", ("response/length_mean",), "mean, in tokens"),
    Chart("Truncated responses", ("response/truncated_share",), "share that hit the token limit", share=True),
    Chart("Answers in a box", ("format/boxed_share",), "share of responses with a complete \\boxed{}", share=True),
    Chart("Score s̄", ("score/positive_mean", "score/negative_mean"), "mean; solid: right rollouts, dashed: wrong ones"),
    Chart("Largest weight", ("weight/abs_max",), "largest |∂L/∂s̄|, or |advantage|"),
    Chart("Clipped", ("ratio/clipped_fraction",), "share of tokens whose gradient the clip removes", share=True),
    Chart("KL estimate", ("kl",), "of the last update, before its coefficient"),
    Chart("Sampler and trainer", ("sampler/logprob_gap",), "mean |log π_trainer − log π_sampler|, nats per token"),
    Chart("Throughput", ("throughput/tokens_per_s",), "response tokens per second, whole step"),
)


def points_of_a_curve(series: int) -> int:
    """The maximum number of points of each curve if `series` series share the page."""
    return min(_MOST_POINTS, max(50, _POINTS_OF_ALL_SERIES // max(series, 1)))


def curve_of(runs: Sequence[RunRecord], name: str, points: int) -> dict[str, Any] | None:
    """The mean over runs by step, with a 95 % interval over seeds (for the held-out accuracy of one run: over problems).

    If there are more than `points` steps, several in a row become one point, averaged within each run, then over runs.
    """
    steps = sorted({step for run in runs for step in run.series(name)})
    if not steps:
        return None
    size = -(-len(steps) // points)
    xs, rows, counts = [], [], []
    for first in range(0, len(steps), size):
        bins = steps[first : first + size]
        means = [
            math.fsum(found) / len(found)
            for run in runs
            if (found := [run.series(name)[step] for step in bins if step in run.series(name)])
        ]
        mean, low, high = astuple(mean_of(means))
        if len(runs) == 1 and size == 1 and is_accuracy(name):
            error = runs[0].series(name.removesuffix("accuracy") + "standard_error").get(bins[0])
            low, high = (None, None) if error is None else (mean - NORMAL * error, mean + NORMAL * error)
        xs.append(bins[-1])
        rows.append((mean, low, high))
        counts.append(len(means))
    mean, low, high = zip(*rows, strict=True)
    curve: dict[str, Any] = {"x": xs, "mean": mean, "n": counts if len(set(counts)) > 1 else counts[0], "per": size}
    return curve | ({"low": low, "high": high} if any(value is not None for value in low) else {})


def charts_of(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """All charts with a metric of some run, held-out accuracy near the start, then one chart for each other metric."""
    recorded = {name for run in runs for name, values in run.metrics.items() if values}
    chosen = [Chart(c.title, tuple(n for n in c.metrics if n in recorded), c.about, c.share) for c in CHARTS]
    held_out = [
        Chart("Held-out accuracy", (name,), f"pass@1, {set_name(name)}", share=True)
        for name in sorted(recorded)
        if is_accuracy(name)
    ]
    shown = [chart for chart in (*chosen[:1], *held_out, *chosen[1:]) if chart.metrics]
    taken = {name for chart in shown for name in chart.metrics}
    rest = [Chart(name, (name,), "") for name in sorted(recorded - taken)]
    return [
        {"title": c.title, "metrics": c.metrics, "about": c.about, "share": c.share, "main": c in shown}
        for c in (*shown, *rest)
    ]


def bands_of(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Quantiles of s̄ and of the weights by step, separately for right and wrong rollouts, pooled over the runs of a series.

    Only rollouts with a weight count; for others s̄ was not computed.
    """
    files: dict[int, list[Path]] = {}
    for run in runs:
        for step, path in run.rollout_files():
            files.setdefault(step, []).append(path)
    steps = sorted(files)
    bands: dict[str, Any] = {}
    for step in steps[:: -(-len(steps) // _BAND_STEPS) or 1]:
        parts = [numbers for path in files[step] if (numbers := rollout_numbers(path)) is not None]
        if not parts:
            continue
        score, weight, reward = (np.concatenate([part[name] for part in parts]) for name in ("score", "weight", "reward"))
        computed = np.isfinite(score) & np.isfinite(weight) & (weight != 0)
        for side, rows in (("right", computed & (reward > 0)), ("wrong", computed & (reward <= 0))):
            for name, values in (("score", score[rows]), ("weight", np.abs(weight[rows]))):
                if len(values):
                    band = bands.setdefault(name, {}).setdefault(side, {"x": [], "quantiles": [[] for _ in _QUANTILES]})
                    band["x"].append(step)
                    for kept, quantile in zip(band["quantiles"], np.quantile(values, _QUANTILES), strict=True):
                        kept.append(float(quantile))
    return bands


def ratios_of(runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Token counts by interval of ρ and sign of the advantage (paper, Figure 2) over all runs; None without token data."""
    files = [found for run in runs for found in run.rollout_files()]
    chosen = files[:: -(-len(files) // _BAND_STEPS) or 1]
    counts = [found for _, path in chosen if (found := token_ratios(path)) is not None]
    if not counts:
        return None
    edges = [*BELOW, *ABOVE]
    between = [f"{low:g} to {high:g}" for low, high in zip(edges, edges[1:], strict=False)]
    return {
        "names": [f"below {edges[0]:g}", *between, f"above {edges[-1]:g}"],
        "intervals": np.sum([one.intervals for one in counts], axis=0).tolist(),
        "dropped": np.sum([one.dropped for one in counts], axis=0).tolist(),
        "epsilon": EPSILON,
    }


def set_name(name: str) -> str:
    """`eval/SET/MODE/accuracy` as "SET, MODE"."""
    return ", ".join(name.removeprefix("eval/").rsplit("/", 2)[:2])
