"""REAL: rewards as class labels (Eq. 2, 6–8)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import softplus

from realrl.objectives.base import BaseObjectiveConfig, LabelObjective, register_objective
from realrl.objectives.scores import segment_logsumexp


class RealConfig(BaseObjectiveConfig):
    """τ = 0.5, anchor logit at 0, groups that are all right or all wrong skipped, no KL."""

    type: Literal["real"] = "real"
    tau: float = Field(default=0.5, gt=0)
    anchor: bool = True
    degenerate_groups: Literal["skip", "use"] = "skip"


@register_objective(RealConfig)
class Real(LabelObjective):
    """Per group log(1 + Σ_{O+} e^{−s̄/τ}) + log(1 + Σ_{O−} e^{s̄/τ}) (Eq. 6–8), averaged over all P groups.

    Without the anchor (Eq. 2; "w/o Anchor Logits" of Table 4) log(1 + Σ_{O−} e^{s̄/τ} · Σ_{O+} e^{−s̄/τ}), which is 0 where
    either set is empty. Weights |∂L/∂s̄| are bounded by 1/τ (Eq. 9, 10). Defaults: τ = 0.5, anchor on,
    degenerate_groups "skip" (as the released code; Eq. 8 taken literally is "use"), P counts every group.

    Differs from the released code: groups may be ragged and in any order; rewards outside {0, 1} and empty responses are
    a ValueError.
    """

    def loss_from_scores(self, scores_N, rewards_N, group_ids_N, num_groups=None, *, levels_N=None, totals=None):
        right_N, counted_N, index_N, count = self.counted(rewards_N, group_ids_N)
        groups = num_groups or (totals.num_groups if totals else count)
        logits_N = scores_N / self.config.tau
        positive, negative = counted_N & right_N, counted_N & ~right_N
        anchor = self.config.anchor
        lse_positive = segment_logsumexp(-logits_N[positive], index_N[positive], count, anchor=anchor)
        lse_negative = segment_logsumexp(logits_N[negative], index_N[negative], count, anchor=anchor)
        if anchor:
            return (lse_positive + lse_negative).sum() / groups
        both = torch.isfinite(lse_positive) & torch.isfinite(lse_negative)
        return softplus(lse_positive[both] + lse_negative[both]).sum() / groups
