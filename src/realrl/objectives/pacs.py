"""PACS: implicit actor-critic coupling, a classifier of verifiable rewards (arXiv 2509.02522)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from realrl.objectives.base import ScoreObjective
from realrl.objectives.configs import PACSConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, log_ratio
from realrl.objectives.segments import group_centred, labels


class PACS(PACSConfig, ScoreObjective):
    """For each group (1/G) Σ_i c_i·CE(r_i, σ(ψ_i)), averaged over all P groups; ψ_i = r̂_i − mean_{j≠i} r̂_j, r̂ = β Σ_t s_t.

    The cross-entropy between reward and prediction is softplus(∓ψ) for r = 1 and 0. `balance`: c = G/(2·n) in mixed groups,
    where n is the number of the group's rollouts with the same reward; otherwise c = 1. Groups that are all right or all wrong
    count: they make the r̂ of a group more equal (no gradient at s̄ = 0). A group of one has no leave-one-out mean: skipped.

    Checked against Eq. 6–8, §3.5 and β = 1 in arXiv 2509.02522v2; and RLOO, the balance and the sum (not mean) over tokens in
    github.com/ritzz-ai/PACS (src/pacs/pacs_core_algos.py, scripts/pacs). As in that code, the log-ratio is relative to the
    sampling weights; the paper describes a reference that is sometimes reset to the policy. The released code averages over a
    micro-batch's rollouts, which is the same for groups of equal size.
    """

    def scores(self, inputs: LossInputs):
        """Σ_t s_t, the log-ratio of the whole response."""
        return log_ratio(inputs).sum(dim=1)

    def loss_from_scores(self, scores_N, groups: Groups, whole: Groups):
        right_N = labels(groups.rewards)
        size_N = groups.sizes[groups.index]
        # x_i − mean of the others = (x_i − mean of all)·G/(G − 1).
        centred_N = group_centred(scores_N, groups.index, groups.count)
        psi_N = self.beta * centred_N * size_N / (size_N - 1).clamp(min=1)
        losses_N = softplus(torch.where(right_N, -psi_N, psi_N)) / size_N
        if self.balance:
            losses_N = losses_N * self._balance(right_N, groups)
        return losses_N[size_N > 1].sum() / whole.count

    def _balance(self, right_N: Tensor, groups: Groups) -> Tensor:
        """G/(2·n) in mixed groups, 1 in others."""
        size_N = groups.sizes[groups.index]
        positive_N = groups.sum(right_N.to(size_N.dtype))[groups.index]
        same_N = torch.where(right_N, positive_N, size_N - positive_N)
        return torch.where(same_N < size_N, size_N / (2 * same_N), 1.0)

    def teaching_groups(self, groups: Groups):
        return groups.sizes[groups.index] > 1
