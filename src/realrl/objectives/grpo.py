"""GRPO (Eq. 1, 3), Dr. GRPO and DAPO's variant with a mean over tokens: clipped importance ratios of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from realrl.objectives.base import AdditiveObjective
from realrl.objectives.configs import DAPOConfig, DrGRPOConfig, GRPOConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, log_ratio
from realrl.objectives.segments import group_centred, masked_token_mean


class GRPO(GRPOConfig, AdditiveObjective):
    """−(1/N) Σ_n (1/|o_n|) Σ_t min(ρ_t A_n, clip(ρ_t, 1−ε, 1+ε) A_n) + β·KL(π_θ‖π_ref) (Eq. 1, 3).

    `clip = "bidirectional"` (Fig. 2) drops every token with ρ_t outside [1−ε, 1+ε] for either sign of A, and does not change
    the denominators. Defaults: ε = 0.2, β = 0.001, k3. A group of one has advantage 0.
    """

    def surrogate(self, inputs: LossInputs, whole: Groups, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        epsilon = self.epsilon
        bidirectional = self.clip == "bidirectional"
        gain_NT, clipped = clipped_gain(inputs, advantages_N, epsilon, epsilon, bidirectional=bidirectional)
        loss = -masked_token_mean(gain_NT, inputs.loss_mask).sum() / len(whole)
        return loss, {"ratio/clipped_fraction": clipped}


class DrGRPO(DrGRPOConfig, AdditiveObjective):
    """−(1/(N·L)) Σ_n Σ_t min(ρ_t A_n, clip(ρ_t, 1−ε, 1+ε) A_n) with A = r − mean(r): no division by |o| or by the deviation.

    L = `length_divisor` is a constant that only scales the gradient; in the original code it is the limit of response tokens
    (here `sampling.max_new_tokens`). Checked against the code of arXiv 2503.20783 (constant_normalizer=generate_max_length and
    the advantages, as copied in github.com/callsys/GMPO; 3000 and no KL in the README of
    github.com/sail-sg/understand-r1-zero) and TRL's grpo_trainer.py.
    """

    def advantages(self, groups: Groups) -> Tensor:
        """A = r − mean over the group."""
        return group_centred(groups.rewards, groups.index, groups.count)

    def surrogate(self, inputs: LossInputs, whole: Groups, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        gain_NT, clipped = clipped_gain(inputs, advantages_N, self.epsilon, self.epsilon)
        loss = -torch.where(inputs.loss_mask, gain_NT, 0).sum() / (len(whole) * self.length_divisor)
        return loss, {"ratio/clipped_fraction": clipped}


class DAPO(DAPOConfig, AdditiveObjective):
    """−(1/Σ|o|) Σ_n Σ_t min(ρ_t A_n, clip(ρ_t, 1−ε_low, 1+ε_high) A_n): the mean over all response tokens of the step.

    Defaults: ε_low = 0.2, ε_high = 0.28, no KL. As in the paper's baseline, dynamic sampling and the penalty for overlong
    responses are not included.
    """

    def surrogate(self, inputs: LossInputs, whole: Groups, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        gain_NT, clipped = clipped_gain(inputs, advantages_N, self.epsilon_low, self.epsilon_high)
        loss = -torch.where(inputs.loss_mask, gain_NT, 0).sum() / whole.num_tokens
        return loss, {"ratio/clipped_fraction": clipped}


def clipped_gain(
    inputs: LossInputs, advantages_N: Tensor, low: float, high: float, *, bidirectional: bool = False
) -> tuple[Tensor, float]:
    """min(ρA, clip(ρ)A) for each token (N, T), and the share of response tokens that lose their gradient by clipping."""
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
