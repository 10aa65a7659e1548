"""TRPA: trust-region preference approximation (arXiv 2504.04524)."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import softplus

from realrl.objectives.base import ScoreObjective
from realrl.objectives.configs import TRPAConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs
from realrl.objectives.segments import labels, masked_token_mean


class TRPA(TRPAConfig, ScoreObjective):
    """The mean of softplus(−a·β(Δ_w − Δ_l)) over all pairs (w, l) of a group with level(w) > level(l), plus c·KL(π_θ‖π_old).

    Δ = mean_t(log π_θ − log π_ref); a = anisotropy if w is right, else 1. Levels: 2 right, 1 parsable but wrong, 0 no answer.
    Defaults: β = 0.1, a = 2.5, c = 0.001 (k3). The original code uses mean softplus(∓Δ) if the whole batch has no pair; here
    the preference loss is then 0, and `groups/degenerate` shows it.
    """

    def scores(self, inputs: LossInputs):
        """Δ = mean_t(log π_θ − log π_ref); raises ValueError without `logprobs_ref`."""
        if inputs.logprobs_ref is None:
            raise ValueError("trpa needs logprobs_ref, the reference model's log-probabilities; it is None")
        return masked_token_mean(inputs.logprobs_policy - inputs.logprobs_ref, inputs.loss_mask)

    def loss_from_scores(self, scores_N, groups: Groups, whole: Groups):
        levels_N = levels_of(groups)
        better, worse = preference_pairs(levels_N, groups.ids)
        sharpness = torch.where(levels_N[better] == 2, self.anisotropy, 1.0).to(scores_N.dtype)
        margins = self.beta * (scores_N[better] - scores_N[worse])
        return softplus(-sharpness * margins).sum() / max(count_preference_pairs(levels_of(whole), whole.ids), 1)

    def teaching_groups(self, groups: Groups):
        in_pair = torch.zeros_like(groups.rewards, dtype=torch.bool)
        for rows in preference_pairs(levels_of(groups), groups.ids):
            in_pair[rows] = True
        return in_pair


def levels_of(groups: Groups) -> Int[Tensor, " N"]:
    """The given levels, or by default 2 if the reward is 1, else 1. Raises ValueError for rewards other than 0 and 1."""
    right_N = labels(groups.rewards)
    return 1 + right_N.long() if groups.levels is None else groups.levels


def preference_pairs(
    levels_N: Int[Tensor, " N"], group_ids_N: Int[Tensor, " N"]
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """Indices (w, l) of all pairs within a group with level(w) > level(l)."""
    same = group_ids_N[:, None] == group_ids_N[None, :]
    better, worse = (same & (levels_N[:, None] > levels_N[None, :])).nonzero(as_tuple=True)
    return better, worse


def count_preference_pairs(levels_N: Int[Tensor, " N"], group_ids_N: Int[Tensor, " N"]) -> int:
    """The number of `preference_pairs`, from the sizes of groups and of their levels, so memory grows with N, not N²."""
    size_P = group_ids_N.unique(return_counts=True)[1]
    alike = torch.stack([group_ids_N, levels_N]).unique(dim=1, return_counts=True)[1]
    return int((size_P**2).sum() - (alike**2).sum()) // 2
