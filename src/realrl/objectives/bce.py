"""Binary cross-entropy over each rollout (Eq. 11)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import softplus

from realrl.objectives.base import BaseObjectiveConfig, LabelObjective, register_objective


class BCEConfig(BaseObjectiveConfig):
    """τ = 0.5, a sum over the group, groups that are all right or all wrong skipped, no KL."""

    type: Literal["bce"] = "bce"
    tau: float = Field(default=0.5, gt=0)
    reduction: Literal["sum", "mean"] = "sum"
    degenerate_groups: Literal["skip", "use"] = "skip"


@register_objective(BCEConfig)
class BCE(LabelObjective):
    """Per group Σ_{O+} softplus(−s̄/τ) + Σ_{O−} softplus(s̄/τ) (Eq. 11), averaged over all P groups.

    Defaults: τ = 0.5, reduction "sum" (the paper). Differs from the released code, which takes the mean over the rollouts
    of mixed groups: that is reduction "mean".
    """

    def loss_from_scores(self, scores_N, rewards_N, group_ids_N, num_groups=None, *, levels_N=None, totals=None):
        right_N, counted_N, _, count = self.counted(rewards_N, group_ids_N)
        logits_N = torch.where(right_N, -scores_N, scores_N) / self.config.tau
        total = softplus(logits_N[counted_N]).sum()
        if self.config.reduction == "sum":
            return total / (num_groups or (totals.num_groups if totals else count))
        if totals is None:
            return total / max(int(counted_N.sum()), 1)
        return total / max(totals.num_mixed_rollouts if self.skips_degenerate else totals.num_rollouts, 1)
