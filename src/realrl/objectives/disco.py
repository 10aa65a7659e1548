"""DisCO: discriminative constrained optimization (arXiv 2505.12366)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from realrl.objectives.base import BaseObjectiveConfig, ScoreObjective, register_objective
from realrl.objectives.scores import (
    group_index,
    labels,
    log_ratio,
    masked_token_mean,
    mixed_groups,
    segment_logsumexp,
    segment_sum,
)
from realrl.types import LossInputs, LossOutput, LossTotals


def _default_tau(given: dict[str, Any]) -> float:
    return 1.0 if given.get("score") == "Lratio" else 10.0


class DisCOConfig(BaseObjectiveConfig):
    """Score log-L with τ = 10 (L-ratio: τ = 1), β = 1e3, δ = 1e-4; `negatives = "mean"` is DisCO-b, β = 0 no trust region."""

    type: Literal["disco"] = "disco"
    score: Literal["logL", "Lratio"] = "logL"
    negatives: Literal["logmeanexp", "mean"] = "logmeanexp"
    tau: float = Field(default_factory=_default_tau, gt=0)
    beta: float = Field(default=1e3, ge=0)
    delta: float = Field(default=1e-4, ge=0)


@register_objective(DisCOConfig)
class DisCO(ScoreObjective):
    """Per mixed group −mean₊ ℓ + τ·log mean₋ e^{ℓ/τ}, averaged over all P groups, plus β/2·[KL(π_old‖π_θ) − δ]₊².

    ℓ is mean_t log π_θ ("logL") or mean_t ρ_t ("Lratio"); DisCO-b takes the plain mean of the negatives, the limit τ → ∞.
    KL is −Σ s_t over all response tokens of the optimizer step, divided by their number: one number that couples every
    rollout, degenerate groups included. So a rollout has two scores, ℓ and Σ_t s_t; the second one's weight is the slope of the
    squared hinge, and two passes are exact for any split. No split into groups adds up while β > 0. The ratio enters as
    mean(ρ − 1), which leaves the loss of a mixed group as it is and is 0 right after sampling.

    Checked: both scores, the groups' terms, the mean over all questions, the slope β[KL − δ]₊ and the defaults (β, δ, τ)
    against github.com/Optimization-AI/DisCO (verl/verl/trainer/ppo/core_algos.py in the copy MYC000801/DisCO, scripts/train)
    and verl's docs/algo/disco.md. The estimator of KL is that code's (`ppo_kl_type=kl`, a mean over tokens); the paper's own
    formula for it could not be read. Differs from the released code, which computes KL for each micro-batch.
    """

    score_shape: ClassVar[tuple[int, ...]] = (2,)
    needs_labels = True

    def __init__(self, config: DisCOConfig) -> None:
        super().__init__(config)
        self.zero_scores_when_fresh = config.score == "Lratio"
        self.sums_over_groups = config.beta == 0

    def scores(self, inputs: LossInputs):
        """(N, 2): ℓ (the ratio minus 1) and Σ_t s_t."""
        ratio_NT = log_ratio(inputs)
        values_NT = inputs.logprobs_policy if self.config.score == "logL" else torch.expm1(ratio_NT)
        return torch.stack([masked_token_mean(values_NT, inputs.loss_mask), ratio_NT.sum(dim=1)], dim=1)

    def loss_from_scores(self, scores_N, rewards_N, group_ids_N, num_groups=None, *, levels_N=None, totals=None):
        score_N, drift_N = scores_N.unbind(dim=1)
        right_N = labels(rewards_N)
        index_N, count = group_index(group_ids_N)
        mixed_P = mixed_groups(right_N, index_N, count)
        positive_P = self._mean(score_N, index_N, count, right_N)
        if self.config.negatives == "mean":
            negative_P = self._mean(score_N, index_N, count, ~right_N)
        else:
            size_P = segment_sum((~right_N).to(score_N.dtype), index_N, count)
            logits_N = score_N[~right_N] / self.config.tau
            total_P = segment_logsumexp(logits_N, index_N[~right_N], count, anchor=False)
            negative_P = self.config.tau * (total_P - size_P.log())
        groups = num_groups or (totals.num_groups if totals else count)
        return (negative_P - positive_P)[mixed_P].sum() / groups + self._trust_region(drift_N, totals)

    def _mean(self, score_N: Tensor, index_N: Tensor, count: int, rows_N: Tensor) -> Tensor:
        size_P = segment_sum(rows_N.to(score_N.dtype), index_N, count)
        return segment_sum(score_N[rows_N], index_N[rows_N], count) / size_P.clamp(min=1)

    def _trust_region(self, drift_N: Tensor, totals: LossTotals | None) -> Tensor | float:
        if not self.config.beta:
            return 0.0
        if totals is None:
            raise ValueError("disco's trust region is a mean over the step's response tokens: pass totals (totals_of(inputs))")
        excess = (-drift_N.sum() / totals.num_tokens - self.config.delta).clamp(min=0)
        return self.config.beta / 2 * excess.square()

    def __call__(self, inputs: LossInputs, totals: LossTotals | None = None) -> LossOutput:
        out = super().__call__(inputs, totals)
        drift = log_ratio(inputs).detach()[inputs.loss_mask].mean()
        return LossOutput(out.loss, {**out.metrics, "ratio/kl_old": -float(drift)})

    def carries_gradient(self, rewards_N, group_ids_N, levels_N=None):
        """Every row while the trust region is on: it holds the rollouts of degenerate groups too."""
        if self.config.beta:
            return torch.ones_like(rewards_N, dtype=torch.bool)
        return super().carries_gradient(rewards_N, group_ids_N, levels_N)

    def teaching_groups(self, rewards_N, group_ids_N, levels_N):
        index_N, count = group_index(group_ids_N)
        return mixed_groups(labels(rewards_N), index_N, count)[index_N]
