"""Binary cross-entropy over each rollout (Eq. 11)."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from realrl.objectives.base import LabelObjective
from realrl.objectives.configs import BCEConfig
from realrl.objectives.groups import Groups


class BCE(BCEConfig, LabelObjective):
    """For each group Σ_{O+} softplus(−s̄/τ) + Σ_{O−} softplus(s̄/τ) (Eq. 11), averaged over all P groups.

    Defaults: τ = 0.5, reduction "sum" as in the paper. The released code takes the mean over the rollouts of mixed groups
    instead, which is reduction "mean".
    """

    def loss_from_scores(self, scores_N, groups: Groups, whole: Groups):
        right_N, counted_N = self.counted(groups)
        logits_N = torch.where(right_N, -scores_N, scores_N) / self.tau
        total = softplus(logits_N[counted_N]).sum()
        return total / (whole.count if self.reduction == "sum" else max(int(self.counted(whole)[1].sum()), 1))
