"""TRPA: trust-region preference approximation (arXiv 2504.04524)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import softplus

from realrl.objectives.base import BaseObjectiveConfig, ScoreObjective, register_objective
from realrl.objectives.kl import KLConfig
from realrl.objectives.scores import labels, masked_token_mean, preference_pairs
from realrl.types import LossInputs


class TRPAConfig(BaseObjectiveConfig):
    """β = 0.1, anisotropy 2.5, KL to the sampling weights with coefficient 0.001 and estimator k3."""

    type: Literal["trpa"] = "trpa"
    beta: float = Field(default=0.1, gt=0)
    anisotropy: float = Field(default=2.5, gt=0)
    kl: KLConfig = KLConfig(target="old", coef=0.001)


@register_objective(TRPAConfig)
class TRPA(ScoreObjective):
    """Mean over all pairs (w, l) of one group with level(w) above level(l) of softplus(−a·β(Δ_w − Δ_l)), plus c·KL(π_θ‖π_old).

    Δ = mean_t(log π_θ − log π_ref); a = anisotropy where w is right, else 1; levels: right 2, parsable but wrong 1, no
    answer 0. Defaults: β = 0.1, a = 2.5, c = 0.001 (k3). Differs from its code, which falls back to mean softplus(∓Δ) where
    the whole batch has no pair: here the preference loss is 0 then, and `groups/degenerate` counts.
    """

    needs_labels = True
    zero_scores_when_fresh = False

    @property
    def needs_ref(self) -> bool:
        """Always: Δ is relative to the reference model."""
        return True

    def scores(self, inputs: LossInputs):
        """Δ = mean_t(log π_θ − log π_ref); raises ValueError without `logprobs_ref`."""
        if inputs.logprobs_ref is None:
            raise ValueError("trpa needs logprobs_ref, the reference model's log-probabilities; it is None")
        return masked_token_mean(inputs.logprobs_policy - inputs.logprobs_ref, inputs.loss_mask)

    def loss_from_scores(self, scores_N, rewards_N, group_ids_N, num_groups=None, *, levels_N=None, totals=None):
        right_N = labels(rewards_N)
        levels_N = 1 + right_N.long() if levels_N is None else levels_N
        better, worse = preference_pairs(levels_N, group_ids_N)
        pairs = totals.num_pairs if totals else len(better)
        sharpness = torch.where(levels_N[better] == 2, self.config.anisotropy, 1.0).to(scores_N.dtype)
        margins = self.config.beta * (scores_N[better] - scores_N[worse])
        return softplus(-sharpness * margins).sum() / max(pairs, 1)

    def teaching_groups(self, rewards_N, group_ids_N, levels_N):
        levels_N = 1 + labels(rewards_N).long() if levels_N is None else levels_N
        in_pair = torch.zeros_like(rewards_N, dtype=torch.bool)
        for rows in preference_pairs(levels_N, group_ids_N):
            in_pair[rows] = True
        return in_pair
