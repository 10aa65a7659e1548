"""Figure 1 of the paper, for every objective: the size of a response's gradient weight as a function of its log-ratio.

Lines are autograd gradients of the objectives used in training; dots are closed forms. A group has four right and four wrong
responses; one of them moves, and the others have log-ratio 0. Responses have one token, so s_t = s̄. Then REAL's
C = 1 + Σ_others e^0 = 4, as in the paper's figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes

from realrl.figures.canvas import COLOURS, RIGHT, WRONG, panels, plain, save, style
from realrl.objectives import AdditiveObjective, Groups, LossInputs, build_objective, list_objectives

Curve = Float[np.ndarray, " K"]

_SAME = 4
# With the denominators of one rollout with one token, every mean in a loss becomes a sum, without constant factors.
_ONE = Groups(torch.ones(1), torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long))
# A response of either label is in 4 pairs.
_SCALE = {"trpa": 1 / _SAME}
# With an even number of points, none is 0 or on the edge of a clip, where the gradient is not unique.
LOG_RATIOS: Curve = np.linspace(-2, 2, 200)
_EVERY = 14
TAUS = (0.1, 0.5, 1.0)
_READING = "lines: autograd; dots: formula"
_NO_KL = {"kl": {"target": "none", "coef": 0.0}}
# Settings that remove what a picture of one response cannot show: terms of the whole step, and constants.
_SETTINGS: dict[str, dict[str, Any]] = {"disco": {"beta": 0.0}, "dr_grpo": {"length_divisor": 1.0}}
_REMARKS = {"disco": "without its trust region", "nft": "question weight ω = 1/2"}


def gradient_weights(config: Mapping[str, Any], log_ratios_K: Curve, *, right: bool) -> Curve:
    """∂L/∂s of one right or wrong response at each log-ratio s, by autograd in float64, without KL penalties.

    Advantages are A = ±1, except for objectives that use rewards as labels.
    """
    objective = build_objective({**_NO_KL, **config})
    count, size = len(log_ratios_K), 2 * _SAME
    rewards_N = torch.tensor([1.0] * _SAME + [0.0] * _SAME, dtype=torch.float64).repeat(count)
    group_ids_N = torch.arange(count).repeat_interleave(size)
    moved_K = torch.arange(count) * size + (0 if right else _SAME)
    policy_NT = torch.zeros(count * size, 1, dtype=torch.float64)
    policy_NT[moved_K, 0] = torch.as_tensor(log_ratios_K)
    policy_NT.requires_grad_(True)
    old_NT = torch.zeros_like(policy_NT)
    loss_mask = torch.ones_like(old_NT, dtype=torch.bool)
    inputs = LossInputs(policy_NT, old_NT, loss_mask, rewards_N, group_ids_N, logprobs_ref=old_NT)
    if isinstance(objective, AdditiveObjective):
        given = objective.advantages(inputs.groups) if objective.needs_labels else 2 * rewards_N - 1
        loss = objective.additive_loss(inputs, _ONE, given)
    else:
        loss = objective.evaluate(inputs, _ONE).loss * _SCALE.get(objective.type, 1)
    (gradient_NT,) = torch.autograd.grad(loss, policy_NT)
    return gradient_NT[moved_K, 0].numpy()


def formula(config: Mapping[str, Any], s: Curve, *, right: bool) -> Curve | None:
    """The closed form of the same weight for the objective's defaults (REAL: any τ); None if there is none."""
    known = _FORMULAS.get(config["type"])
    if known is None:
        return None
    return known(s, right, config["tau"]) if config.get("tau") else known(s, right)


def weight_figures(folder: Path) -> list[Path]:
    """Write figure_1 (GRPO and REAL), figure_1_objectives (all objectives) and figure_1_tau (three values of τ)."""
    with style():
        return [*_paper_figure(folder), *_all_objectives(folder), *_temperatures(folder)]


def figure_1_of(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write figure_1_runs: a panel for each label and objective, with the settings of its run; autograd only, no dots."""
    with style():
        return _grid(configs, folder, "figure_1_runs", dot=0)


def _paper_figure(folder: Path) -> list[Path]:
    figure, axes = panels(1, 2, (4.6, 3.7), sharey=True)
    data: list[dict[str, Any]] = []
    for axis, name in zip(axes, ("grpo", "real"), strict=True):
        for right in (True, False):
            data += _draw(axis, {"type": name}, right=right, label=_name_of(right))
    axes[0].set(title="GRPO (ε = 0.2, A = ±1)", xlabel="log-ratio of a token, $s_t$ (nats)")
    axes[1].set(title="REAL (τ = 0.5, C = 4)", xlabel="mean log-ratio of a response, $\\bar{s}$ (nats)")
    axes[0].set_ylabel("gradient weight $|W|$ = $|\\partial L/\\partial s|$")
    axes[1].axhline(2.0, color="#888888", linewidth=1, linestyle=":")
    axes[1].text(2.0, 2.08, "bound 1/τ", ha="right", va="bottom", color="#555555", fontsize=9)
    axes[0].legend(loc="upper left", title=_READING, alignment="left")
    return save(figure, data, folder, "figure_1")


def _all_objectives(folder: Path) -> list[Path]:
    return _grid({name: {"type": name} for name in list_objectives()}, folder, "figure_1_objectives", dot=3.2)


def _grid(configs: Mapping[str, Mapping[str, Any]], folder: Path, name: str, *, dot: float) -> list[Path]:
    """Draw a panel for each label and objective, four in a row, without terms of the whole step."""
    columns = min(len(configs), 4)
    figure, axes = panels(-(-len(configs) // columns), columns, (2.7, 2.3), sharex=True)
    data: list[dict[str, Any]] = []
    for axis, (label, config) in zip(axes, configs.items(), strict=False):
        kind = config.get("type", "")
        config = {**config, **_SETTINGS.get(kind, {})}
        drawn = [row for right in (True, False) for row in _draw(axis, config, right=right, label=_name_of(right), dot=dot)]
        axis.set_title(plain(label), loc="left", fontweight="bold")
        if kind in _REMARKS:
            axis.set_title(_REMARKS[kind], loc="right", fontsize=8, color="#555555")
        axis.set_ylim(bottom=0, top=1.08 * max(abs(row["weight"]) for row in drawn))
        axis.xaxis.set_tick_params(labelbottom=True)
        data += drawn
    for axis in axes[len(configs) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    rest, place = (axes[len(configs)], "upper left") if len(axes) > len(configs) else (axes[0], "best")
    rest.legend(handles, labels, loc=place, title=_READING if dot else None, alignment="left")
    figure.supxlabel("log-ratio s of the response (nats); the others of its group at 0", fontsize=10)
    figure.supylabel("gradient weight |∂L/∂s|, constants in front of the sum left out", fontsize=10)
    return save(figure, data, folder, name)


def _temperatures(folder: Path) -> list[Path]:
    figure, axes = panels(1, 2, (4.6, 3.7), sharey=True)
    data: list[dict[str, Any]] = []
    for axis, right in zip(axes, (True, False), strict=True):
        for tau, colour, dashes in zip(TAUS, COLOURS, ("--", "-", ":"), strict=False):
            config = {"type": "real", "tau": tau}
            data += _draw(axis, config, right=right, label=f"τ = {tau:g}, bound {1 / tau:g}", colour=colour, dashes=dashes)
        axis.set(title=f"REAL, {_name_of(right)}", xlabel="mean log-ratio of the response, $\\bar{s}$ (nats)")
    axes[0].set_ylabel("gradient weight $|W|$ = $|\\partial L/\\partial \\bar{s}|$")
    axes[0].legend(loc="upper right")
    return save(figure, data, folder, "figure_1_tau")


def _name_of(right: bool) -> str:
    return "right (r = 1)" if right else "wrong (r = 0)"


def _draw(
    axis: Axes, config: dict[str, Any], *, right: bool, label: str, colour: str = "", dashes: str = "", dot: float = 4.2
) -> list[dict[str, Any]]:
    """Draw a curve, and dots of size `dot`; returns rows of the CSV. A negative weight raises the response's probability."""
    s = LOG_RATIOS
    weight = gradient_weights(config, s, right=right)
    closed = formula(config, s, right=right) if dot else None
    colour = colour or (RIGHT if right else WRONG)
    # A jump to 0 is the edge of a clip, so the line must have a gap there.
    jumps = np.flatnonzero(np.diff(weight == 0)) + 1
    drawn = np.insert(np.abs(weight), jumps, np.nan)
    axis.plot(np.insert(s, jumps, np.nan), drawn, color=colour, linestyle=dashes or ("-" if right else "--"), label=label)
    if closed is not None:
        dots = slice(_EVERY // 2, None, _EVERY)
        axis.plot(
            s[dots], np.abs(closed[dots]), "o", color=colour, markerfacecolor="white", markersize=dot, markeredgewidth=1.0
        )
    columns = {"objective": config["type"], "tau": config.get("tau", ""), "reward": int(right)}
    closed_form = [""] * len(s) if closed is None else [float(value) for value in closed]
    return [
        {**columns, "log_ratio": float(x), "weight": float(w), "formula": f}
        for x, w, f in zip(s, weight, closed_form, strict=True)
    ]


def _sigmoid(x: Curve) -> Curve:
    return 1 / (1 + np.exp(-x))


def _real(s: Curve, right: bool, tau: float = 0.5) -> Curve:
    sign = 1 if right else -1
    return -sign / tau / (1 + 4 * np.exp(sign * s / tau))


def _bce(s: Curve, right: bool, tau: float = 0.5) -> Curve:
    sign = 1 if right else -1
    return -sign / tau * _sigmoid(-sign * s / tau)


def _clipped(low: float, high: float) -> Callable[[Curve, bool], Curve]:
    """−Aρ, but 0 if A > 0 and s > high, or A < 0 and s < low; `low` and `high` are log-ratios."""

    def weight(s: Curve, right: bool) -> Curve:
        return np.where(s <= high, -np.exp(s), 0) if right else np.where(s >= low, np.exp(s), 0)

    return weight


def _trpa(s: Curve, right: bool) -> Curve:
    sharpness = 2.5 * 0.1
    return -sharpness * _sigmoid(-sharpness * s) if right else sharpness * _sigmoid(sharpness * s)


def _disco(s: Curve, right: bool) -> Curve:
    return np.full_like(s, -1 / 4) if right else np.exp(s / 10) / (np.exp(s / 10) + 3)


def _cispo(s: Curve, right: bool) -> Curve:
    return (-1 if right else 1) * np.minimum(np.exp(s), 5)


def _sapo(s: Curve, right: bool) -> Curve:
    gate = _sigmoid((1.0 if right else 1.05) * (np.exp(s) - 1))
    return (-1 if right else 1) * np.exp(s) * 4 * gate * (1 - gate)


def _pacs(s: Curve, right: bool) -> Curve:
    """(d − mean d)/(G − 1), d = σ(ψ) − r; ψ is s for the moved response and −s/(G − 1) for the other seven."""
    moved, other = _sigmoid(s), _sigmoid(-s / 7)
    own = moved - (1 if right else 0)
    mean = (moved + 7 * other - 4) / 8
    return (own - mean) / 7


def _nft(s: Curve, right: bool) -> Curve:
    ratio = np.exp(s)
    return np.full_like(s, -0.5) if right else 0.5 * ratio / np.maximum(2 - ratio, 1)


_FORMULAS: dict[str, Callable[..., Curve]] = {
    "real": _real,
    "bce": _bce,
    "grpo": _clipped(np.log(0.8), np.log(1.2)),
    "dr_grpo": _clipped(np.log(0.8), np.log(1.2)),
    "dapo": _clipped(np.log(0.8), np.log(1.28)),
    "gspo": _clipped(np.log(1 - 3e-4), np.log(1 + 4e-4)),
    "gmpo": _clipped(-0.4, 0.4),
    "trpa": _trpa,
    "disco": _disco,
    "cispo": _cispo,
    "sapo": _sapo,
    "pacs": _pacs,
    "nft": _nft,
}
