"""GMPO: the geometric mean of clipped token ratios (arXiv 2507.20673)."""

from __future__ import annotations

import torch
from torch import Tensor

from realrl.objectives.base import AdditiveObjective
from realrl.objectives.configs import GMPOConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, log_ratio
from realrl.objectives.segments import masked_token_mean


class GMPO(GMPOConfig, AdditiveObjective):
    """−(1/N) Σ_n A_n·exp(mean_t s'_t), s' = min(s, ε_high) where A > 0 and max(s, −ε_low) where A < 0.

    It applies GRPO's one-sided clip to each token in log space, then takes the geometric mean of the ratios.

    Checked against github.com/callsys/GMPO (train_zero_math_gmpo.py; `cliprange` 0.4 and A divided by the group's deviation in
    scripts/qwen2.5-math-7b-gmpo.sh), verl's `geo_mean` and TRL's GMPOTrainer, which agree.
    """

    def surrogate(self, inputs: LossInputs, whole: Groups, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        ratio_NT = log_ratio(inputs)
        upper_NT, lower_NT = ratio_NT.clamp(max=self.epsilon_high), ratio_NT.clamp(min=-self.epsilon_low)
        clipped_NT = torch.where(advantages_N[:, None] > 0, upper_NT, lower_NT)
        gain_N = masked_token_mean(clipped_NT, inputs.loss_mask).exp() * advantages_N
        dropped = (clipped_NT != ratio_NT)[inputs.loss_mask]
        return -gain_N.sum() / len(whole), {"ratio/clipped_fraction": float(dropped.float().mean())}
