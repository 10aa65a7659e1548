"""SAPO: a soft gate instead of a clip (arXiv 2511.20347)."""

from __future__ import annotations

import torch
from torch import Tensor

from realrl.objectives.base import AdditiveObjective
from realrl.objectives.configs import SAPOConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, log_ratio
from realrl.objectives.segments import masked_token_mean


class SAPO(SAPOConfig, AdditiveObjective):
    """−(1/N) Σ_n (1/|o_n|) Σ_t f(ρ_t) A_n with f(ρ) = (4/τ)·σ(τ(ρ − 1)); the slope of f is 1 at ρ = 1 and falls away from it.

    τ is `tau_positive` if A > 0, else `tau_negative`. A larger τ reduces the weight of off-policy tokens faster.

    Checked against Eq. 5, 6 of arXiv 2511.20347 in a public excerpt, and TRL's grpo_trainer.py (`loss_type="sapo"`) and verl's
    core_algos.py for the gate, the temperatures and the mean over a rollout's tokens, then over rollouts.
    """

    def surrogate(self, inputs: LossInputs, whole: Groups, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        tau_N = torch.full_like(advantages_N, self.tau_negative)
        tau_N1 = tau_N.masked_fill(advantages_N > 0, self.tau_positive)[:, None]
        gate_NT = torch.sigmoid(tau_N1 * torch.expm1(log_ratio(inputs))) * 4 / tau_N1
        gain_N = masked_token_mean(gate_NT * advantages_N[:, None], inputs.loss_mask)
        return -gain_N.sum() / len(whole), {}
