"""NFT: negative-aware fine-tuning (arXiv 2505.18116)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from realrl.objectives.base import AdditiveObjective, BaseObjectiveConfig, register_objective
from realrl.objectives.scores import group_centred, labels, log_ratio
from realrl.types import LossInputs, LossTotals


class NFTConfig(BaseObjectiveConfig):
    """ε = 1, questions weighted with 1 − r̂ ("dr_grpo"); "grpo" is √((1 − r̂)/r̂), "equal" is 1; no KL."""

    type: Literal["nft"] = "nft"
    epsilon: float = Field(default=1.0, gt=0)
    question_weight: Literal["dr_grpo", "grpo", "equal"] = "dr_grpo"


@register_objective(NFTConfig)
class NFT(AdditiveObjective):
    """−(1/Σ|o|) Σ_n ω(r̂) Σ_t [r log ρ_t + (1 − r) log max_v((1 − r̂ρ_t)/(1 − r̂), ε)], r̂ the group's share of right rollouts.

    Right rollouts are imitated, wrong ones through the implicit negative policy. max_v(x, ε) has the value max(x, ε) and the
    gradient of x. On the sampling policy the gradient is that of GRPO's surrogate with A = r − r̂ (ω = 1 − r̂), or with A divided
    by the group's standard deviation (ω = √((1 − r̂)/r̂)). Groups that are all right or all wrong are skipped.

    Checked: Eq. 7, 10, Algorithm 1 (max_v, 0 < r̂ < 1), Propositions 4.1, 4.2 and the defaults in excerpts of arXiv v3, and
    github.com/NVlabs/NFT (dp_actor.py, train_7B.sh). Denominator: the mean over all response tokens of the step, the paper's
    token-level normalisation. Differs from the released code: that divides sums by 1000, bounds r̂ to [0.02, 0.98], ρ by e^10.
    """

    needs_labels = True

    def advantages(self, rewards_N: Tensor, group_ids_N: Tensor) -> Tensor:
        """r − r̂: with r it gives r̂ back for rows whose group lies elsewhere. Raises ValueError for rewards but 0 and 1."""
        labels(rewards_N)
        return group_centred(rewards_N, group_ids_N)

    def surrogate(self, inputs: LossInputs, totals: LossTotals, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        mixed_N1 = (advantages_N != 0)[:, None]
        # Rows of unmixed groups carry no loss; 1/2 keeps their gradient from being 0/0.
        rate_N1 = torch.where(mixed_N1, (inputs.rewards - advantages_N)[:, None], 0.5)
        ratio_NT = log_ratio(inputs)
        negative_NT = (1 - rate_N1 * ratio_NT.exp()) / (1 - rate_N1)
        floor_NT = negative_NT.detach().clamp(min=self.config.epsilon)
        negative_NT = floor_NT.log() + (negative_NT - negative_NT.detach()) / floor_NT
        likelihood_NT = torch.where(inputs.rewards[:, None] == 1, ratio_NT, negative_NT)
        gain_NT = self._question_weight(rate_N1) * likelihood_NT
        return -torch.where(inputs.loss_mask & mixed_N1, gain_NT, 0).sum() / totals.num_tokens, {}

    def _question_weight(self, rate_N1: Tensor) -> Tensor:
        if self.config.question_weight == "dr_grpo":
            return 1 - rate_N1
        if self.config.question_weight == "grpo":
            return ((1 - rate_N1) / rate_N1).sqrt()
        return torch.ones_like(rate_N1)
