"""PACS: implicit actor-critic coupling, a classifier of verifiable rewards (arXiv 2509.02522)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from realrl.objectives.base import BaseObjectiveConfig, ScoreObjective, register_objective
from realrl.objectives.scores import group_centred, group_index, labels, log_ratio, segment_sum
from realrl.types import LossInputs


class PACSConfig(BaseObjectiveConfig):
    """β = 1, right and wrong rollouts of a group balanced, no KL."""

    type: Literal["pacs"] = "pacs"
    beta: float = Field(default=1.0, gt=0)
    balance: bool = True


@register_objective(PACSConfig)
class PACS(ScoreObjective):
    """Per group (1/G) Σ_i c_i·CE(r_i, σ(ψ_i)), averaged over all P groups; ψ_i = r̂_i − mean_{j≠i} r̂_j, r̂ = β Σ_t s_t.

    The cross-entropy between reward and prediction is softplus(∓ψ) for r = 1 and 0. `balance` sets c = G/(2·n) in mixed groups,
    n the group's rollouts of the same reward, 1 in others (and 1 everywhere without it). Groups that are all right or all wrong
    count: they pull the r̂ of a group together (0 at s̄ = 0). A group of one has no leave-one-out mean and is skipped.

    Checked: Eq. 6–8, §3.5 and β = 1 in the text of arXiv 2509.02522v2; RLOO, the balance and the sum (not mean) over tokens in
    github.com/ritzz-ai/PACS (src/pacs/pacs_core_algos.py, scripts/pacs). The log-ratio is to the sampling weights, as in that
    code; the paper's text has a reference that is reset to the policy from time to time. Differs from the released code, which
    takes the mean over a micro-batch's rollouts: the same for groups of one size.
    """

    needs_labels = True

    def scores(self, inputs: LossInputs):
        """Σ_t s_t, the log-ratio of the whole response."""
        return log_ratio(inputs).sum(dim=1)

    def loss_from_scores(self, scores_N, rewards_N, group_ids_N, num_groups=None, *, levels_N=None, totals=None):
        right_N = labels(rewards_N)
        index_N, count = group_index(group_ids_N)
        size_N = self._sizes(scores_N, index_N, count)
        # x_i − mean of the others = (x_i − mean of all)·G/(G − 1).
        psi_N = self.config.beta * group_centred(scores_N, group_ids_N) * size_N / (size_N - 1).clamp(min=1)
        losses_N = softplus(torch.where(right_N, -psi_N, psi_N)) / size_N
        if self.config.balance:
            losses_N = losses_N * self._balance(right_N, size_N, index_N, count)
        return losses_N[size_N > 1].sum() / (num_groups or (totals.num_groups if totals else count))

    def _sizes(self, values_N: Tensor, index_N: Tensor, count: int) -> Tensor:
        return segment_sum(torch.ones_like(values_N), index_N, count)[index_N]

    def _balance(self, right_N: Tensor, size_N: Tensor, index_N: Tensor, count: int) -> Tensor:
        """G/(2·n) in mixed groups, 1 in others."""
        positive_N = segment_sum(right_N.to(size_N.dtype), index_N, count)[index_N]
        same_N = torch.where(right_N, positive_N, size_N - positive_N)
        return torch.where(same_N < size_N, size_N / (2 * same_N), 1.0)

    def teaching_groups(self, rewards_N, group_ids_N, levels_N):
        index_N, count = group_index(group_ids_N)
        return self._sizes(rewards_N, index_N, count) > 1
