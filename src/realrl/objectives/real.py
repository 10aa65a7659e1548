"""REAL: rewards as class labels (Eq. 2, 6–8)."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from realrl.objectives.base import LabelObjective
from realrl.objectives.configs import RealConfig
from realrl.objectives.groups import Groups
from realrl.objectives.segments import segment_logsumexp


class Real(RealConfig, LabelObjective):
    """For each group log(1 + Σ_{O+} e^{−s̄/τ}) + log(1 + Σ_{O−} e^{s̄/τ}) (Eq. 6–8), averaged over all P groups.

    Without the anchor (Eq. 2; "w/o Anchor Logits" in Table 4) it is log(1 + Σ_{O−} e^{s̄/τ} · Σ_{O+} e^{−s̄/τ}), which is 0 if
    either set is empty. The weights |∂L/∂s̄| are at most 1/τ (Eq. 9, 10). P counts every group. Defaults: τ = 0.5, anchor on,
    degenerate_groups "skip", as in the released code (Eq. 8 read literally is "use").

    Differs from the released code: groups may have any sizes and rollouts any order; rewards other than 0 and 1 and empty
    responses raise ValueError.
    """

    def loss_from_scores(self, scores_N, groups: Groups, whole: Groups):
        right_N, counted_N = self.counted(groups)
        logits_N = scores_N / self.tau
        positive, negative = counted_N & right_N, counted_N & ~right_N
        lse_positive = segment_logsumexp(-logits_N[positive], groups.index[positive], groups.count, anchor=self.anchor)
        lse_negative = segment_logsumexp(logits_N[negative], groups.index[negative], groups.count, anchor=self.anchor)
        if self.anchor:
            return (lse_positive + lse_negative).sum() / whole.count
        both = torch.isfinite(lse_positive) & torch.isfinite(lse_negative)
        return softplus(lse_positive[both] + lse_negative[both]).sum() / whole.count
