"""DisCO: discriminative constrained optimization (arXiv 2505.12366)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from realrl.objectives.base import ScoreObjective
from realrl.objectives.configs import DisCOConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, LossOutput, log_ratio
from realrl.objectives.segments import labels, masked_token_mean, mixed_groups, segment_logsumexp, segment_sum


class DisCO(DisCOConfig, ScoreObjective):
    """For each mixed group −mean₊ ℓ + τ·log mean₋ e^{ℓ/τ}, averaged over all P groups, plus β/2·[KL(π_old‖π_θ) − δ]₊².

    ℓ is mean_t log π_θ ("logL") or mean_t ρ_t ("Lratio"); DisCO-b uses the plain mean of the negatives, the limit τ → ∞.
    KL is −Σ s_t over all response tokens of the optimizer step, divided by their number. This one number couples all rollouts,
    also those of degenerate groups. So each rollout has two scores, ℓ and Σ_t s_t; the weight of the second is the derivative
    of the squared hinge, and two passes are exact for any split. While β > 0, no split into groups adds up. The ratio enters
    as mean(ρ − 1), which does not change the loss of a mixed group and is 0 right after sampling.

    Checked against github.com/Optimization-AI/DisCO (verl/verl/trainer/ppo/core_algos.py in the copy MYC000801/DisCO,
    scripts/train) and verl's docs/algo/disco.md: both scores, the terms of the groups, the mean over all questions, the
    derivative β[KL − δ]₊ and the defaults (β, δ, τ). The KL estimator is the one of that code (`ppo_kl_type=kl`, a mean over
    tokens); we could not read the paper's own formula. Differs from the released code, which computes KL for each micro-batch.
    """

    score_shape: ClassVar[tuple[int, ...]] = (2,)

    def scores(self, inputs: LossInputs):
        """(N, 2): ℓ (the ratio minus 1) and Σ_t s_t."""
        ratio_NT = log_ratio(inputs)
        values_NT = inputs.logprobs_policy if self.score == "logL" else torch.expm1(ratio_NT)
        return torch.stack([masked_token_mean(values_NT, inputs.loss_mask), ratio_NT.sum(dim=1)], dim=1)

    def loss_from_scores(self, scores_N, groups: Groups, whole: Groups):
        score_N, drift_N = scores_N.unbind(dim=1)
        right_N = labels(groups.rewards)
        mixed_P = mixed_groups(right_N, groups.index, groups.count)
        positive_P = self._mean(score_N, groups, right_N)
        if self.negatives == "mean":
            negative_P = self._mean(score_N, groups, ~right_N)
        else:
            size_P = groups.sum((~right_N).to(score_N.dtype))
            logits_N = score_N[~right_N] / self.tau
            total_P = segment_logsumexp(logits_N, groups.index[~right_N], groups.count, anchor=False)
            negative_P = self.tau * (total_P - size_P.log())
        return (negative_P - positive_P)[mixed_P].sum() / whole.count + self._trust_region(drift_N, whole)

    def _mean(self, score_N: Tensor, groups: Groups, rows_N: Tensor) -> Tensor:
        size_P = groups.sum(rows_N.to(score_N.dtype))
        return segment_sum(score_N[rows_N], groups.index[rows_N], groups.count) / size_P.clamp(min=1)

    def _trust_region(self, drift_N: Tensor, whole: Groups) -> Tensor | float:
        if not self.beta:
            return 0.0
        excess = (-drift_N.sum() / whole.num_tokens - self.delta).clamp(min=0)
        return self.beta / 2 * excess.square()

    def evaluate(self, inputs: LossInputs, whole: Groups | None = None) -> LossOutput:
        out = super().evaluate(inputs, whole)
        drift = log_ratio(inputs).detach()[inputs.loss_mask].mean()
        return LossOutput(out.loss, {**out.metrics, "ratio/kl_old": -float(drift)})

    def carries_gradient(self, groups: Groups):
        """All rows while the trust region is on, since it includes the rollouts of degenerate groups."""
        if self.beta:
            return torch.ones_like(groups.rewards, dtype=torch.bool)
        return super().carries_gradient(groups)

    def teaching_groups(self, groups: Groups):
        return mixed_groups(labels(groups.rewards), groups.index, groups.count)[groups.index]
