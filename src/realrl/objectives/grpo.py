"""GRPO (Eq. 1, 3), Dr. GRPO and DAPO's token-mean variant of it: clipped importance ratios of tokens."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from realrl.objectives.base import AdditiveObjective, BaseObjectiveConfig, register_objective
from realrl.objectives.kl import KLConfig
from realrl.objectives.scores import group_centred, log_ratio, masked_token_mean
from realrl.types import LossInputs, LossTotals


class GRPOConfig(BaseObjectiveConfig):
    """ε = 0.2, one-sided clipping, KL to the reference with coefficient 0.001 and estimator k3."""

    type: Literal["grpo"] = "grpo"
    epsilon: float = Field(default=0.2, gt=0)
    clip: Literal["one_sided", "bidirectional"] = "one_sided"
    kl: KLConfig = KLConfig(target="ref", coef=0.001)


@register_objective(GRPOConfig)
class GRPO(AdditiveObjective):
    """−(1/N) Σ_n (1/|o_n|) Σ_t min(ρ_t A_n, clip(ρ_t, 1−ε, 1+ε) A_n) + β·KL(π_θ‖π_ref) (Eq. 1, 3).

    `clip = "bidirectional"` (Fig. 2) drops every token with ρ_t outside [1−ε, 1+ε] whatever the sign of A; denominators
    stay. Defaults: ε = 0.2, β = 0.001, k3. A group of one has advantage 0.
    """

    def surrogate(self, inputs: LossInputs, totals: LossTotals, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        epsilon = self.config.epsilon
        bidirectional = self.config.clip == "bidirectional"
        gain_NT, clipped = clipped_gain(inputs, advantages_N, epsilon, epsilon, bidirectional=bidirectional)
        loss = -masked_token_mean(gain_NT, inputs.loss_mask).sum() / totals.num_rollouts
        return loss, {"ratio/clipped_fraction": clipped}


class DrGRPOConfig(BaseObjectiveConfig):
    """ε = 0.2, sums over tokens divided by 3000 (the paper's limit of response tokens), no KL."""

    type: Literal["dr_grpo"] = "dr_grpo"
    epsilon: float = Field(default=0.2, gt=0)
    length_divisor: float = Field(default=3000.0, gt=0)


@register_objective(DrGRPOConfig)
class DrGRPO(AdditiveObjective):
    """−(1/(N·L)) Σ_n Σ_t min(ρ_t A_n, clip(ρ_t, 1−ε, 1+ε) A_n) with A = r − mean(r): no division by |o| or by the deviation.

    L = `length_divisor` is a constant, in its code the limit of response tokens (`sampling.max_new_tokens` here); it only
    scales the gradient. Checked: the code of arXiv 2503.20783 (constant_normalizer=generate_max_length and the advantages, as
    copied in github.com/callsys/GMPO; 3000 and no KL in the README of github.com/sail-sg/understand-r1-zero) and TRL's
    grpo_trainer.py.
    """

    def advantages(self, rewards_N: Tensor, group_ids_N: Tensor) -> Tensor:
        """A = r − mean over the group."""
        return group_centred(rewards_N, group_ids_N)

    def surrogate(self, inputs: LossInputs, totals: LossTotals, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        gain_NT, clipped = clipped_gain(inputs, advantages_N, self.config.epsilon, self.config.epsilon)
        loss = -torch.where(inputs.loss_mask, gain_NT, 0).sum() / (totals.num_rollouts * self.config.length_divisor)
        return loss, {"ratio/clipped_fraction": clipped}


class DAPOConfig(BaseObjectiveConfig):
    """ε_low = 0.2, ε_high = 0.28, no KL."""

    type: Literal["dapo"] = "dapo"
    epsilon_low: float = Field(default=0.2, gt=0)
    epsilon_high: float = Field(default=0.28, gt=0)


@register_objective(DAPOConfig)
class DAPO(AdditiveObjective):
    """−(1/Σ|o|) Σ_n Σ_t min(ρ_t A_n, clip(ρ_t, 1−ε_low, 1+ε_high) A_n): the mean over all response tokens of the step.

    Defaults: ε_low = 0.2, ε_high = 0.28, no KL. Dynamic sampling and over-long punishment are not part of the objective
    (and of the paper's baseline).
    """

    def surrogate(self, inputs: LossInputs, totals: LossTotals, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        gain_NT, clipped = clipped_gain(inputs, advantages_N, self.config.epsilon_low, self.config.epsilon_high)
        loss = -torch.where(inputs.loss_mask, gain_NT, 0).sum() / totals.num_tokens
        return loss, {"ratio/clipped_fraction": clipped}


def clipped_gain(
    inputs: LossInputs, advantages_N: Tensor, low: float, high: float, *, bidirectional: bool = False
) -> tuple[Tensor, float]:
    """min(ρA, clip(ρ)A) of each token (N, T), and the share of response tokens whose gradient the clip removes."""
    ratio_NT = log_ratio(inputs).exp()
    advantage_N1 = advantages_N[:, None]
    inside = (ratio_NT >= 1 - low) & (ratio_NT <= 1 + high)
    if bidirectional:
        gain_NT, dropped = torch.where(inside, ratio_NT * advantage_N1, 0), ~inside
    else:
        clipped_NT = ratio_NT.clamp(1 - low, 1 + high) * advantage_N1
        gain_NT = torch.minimum(ratio_NT * advantage_N1, clipped_NT)
        dropped = ~inside & (clipped_NT < ratio_NT * advantage_N1)
    return gain_NT, float(dropped[inputs.loss_mask].float().mean())
