"""NFT: negative-aware fine-tuning (arXiv 2505.18116)."""

from __future__ import annotations

import torch
from torch import Tensor

from realrl.objectives.base import AdditiveObjective
from realrl.objectives.configs import NFTConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, log_ratio
from realrl.objectives.segments import group_centred, labels


class NFT(NFTConfig, AdditiveObjective):
    """−(1/Σ|o|) Σ_n ω(r̂) Σ_t [r log ρ_t + (1 − r) log max_v((1 − r̂ρ_t)/(1 − r̂), ε)], r̂ the group's share of right rollouts.

    The loss imitates right rollouts, and wrong ones through the implicit negative policy. max_v(x, ε) has the value max(x, ε)
    and the gradient of x. For the sampling policy, the gradient equals that of GRPO's surrogate with A = r − r̂ (ω = 1 − r̂), or
    with A divided by the group's standard deviation (ω = √((1 − r̂)/r̂)). Skips groups that are all right or all wrong.

    Checked against Eq. 7, 10, Algorithm 1 (max_v, 0 < r̂ < 1), Propositions 4.1, 4.2 and the defaults in excerpts of arXiv v3,
    and github.com/NVlabs/NFT (dp_actor.py, train_7B.sh). The denominator is the number of all response tokens of the step, the
    paper's token-level normalisation. The released code divides sums by 1000 and limits r̂ to [0.02, 0.98] and ρ to e^10.
    """

    def advantages(self, groups: Groups) -> Tensor:
        """r − r̂, from which a part of a group can recover r̂. Raises ValueError for rewards other than 0 and 1."""
        labels(groups.rewards)
        return group_centred(groups.rewards, groups.index, groups.count)

    def surrogate(self, inputs: LossInputs, whole: Groups, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        mixed_N1 = (advantages_N != 0)[:, None]
        # Rows of unmixed groups have no loss; 1/2 avoids 0/0 in their gradient.
        rate_N1 = torch.where(mixed_N1, (inputs.rewards - advantages_N)[:, None], 0.5)
        ratio_NT = log_ratio(inputs)
        negative_NT = (1 - rate_N1 * ratio_NT.exp()) / (1 - rate_N1)
        floor_NT = negative_NT.detach().clamp(min=self.epsilon)
        negative_NT = floor_NT.log() + (negative_NT - negative_NT.detach()) / floor_NT
        likelihood_NT = torch.where(inputs.rewards[:, None] == 1, ratio_NT, negative_NT)
        gain_NT = self._weight_of(rate_N1) * likelihood_NT
        return -torch.where(inputs.loss_mask & mixed_N1, gain_NT, 0).sum() / whole.num_tokens, {}

    def _weight_of(self, rate_N1: Tensor) -> Tensor:
        if self.question_weight == "dr_grpo":
            return 1 - rate_N1
        if self.question_weight == "grpo":
            return ((1 - rate_N1) / rate_N1).sqrt()
        return torch.ones_like(rate_N1)
