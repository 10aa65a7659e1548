"""GSPO: a clipped importance ratio of the whole sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from realrl.objectives.base import AdditiveObjective
from realrl.objectives.configs import GSPOConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, mean_log_ratio


class GSPO(GSPOConfig, AdditiveObjective):
    """−(1/N) Σ_n min(u_n A_n, clip(u_n, 1−ε_low, 1+ε_high) A_n) with u = e^{s̄}, the length-normalised sequence ratio.

    Defaults: ε_low = 3e-4, ε_high = 4e-4, no KL.
    """

    def surrogate(self, inputs: LossInputs, whole: Groups, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        ratio_N = mean_log_ratio(inputs).exp()
        clipped_N = ratio_N.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        gain_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
        dropped_N = clipped_N * advantages_N < ratio_N * advantages_N
        return -gain_N.sum() / len(whole), {"ratio/clipped_fraction": float(dropped_N.float().mean())}
