"""GMPO: the geometric mean of clipped token ratios (arXiv 2507.20673)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from realrl.objectives.base import AdditiveObjective, BaseObjectiveConfig, register_objective
from realrl.objectives.scores import log_ratio, masked_token_mean
from realrl.types import LossInputs, LossTotals


class GMPOConfig(BaseObjectiveConfig):
    """Ratios between e^−0.4 and e^0.4 (both ε are in log space), no KL."""

    type: Literal["gmpo"] = "gmpo"
    epsilon_low: float = Field(default=0.4, gt=0)
    epsilon_high: float = Field(default=0.4, gt=0)


@register_objective(GMPOConfig)
class GMPO(AdditiveObjective):
    """−(1/N) Σ_n A_n·exp(mean_t s'_t), s' = min(s, ε_high) where A > 0 and max(s, −ε_low) where A < 0.

    The one-sided clip of GRPO, token by token and in log space, then the geometric mean of the ratios.

    Checked: github.com/callsys/GMPO (train_zero_math_gmpo.py; `cliprange` 0.4 and A divided by the group's deviation in
    scripts/qwen2.5-math-7b-gmpo.sh), verl's `geo_mean` and TRL's GMPOTrainer, which agree.
    """

    def surrogate(self, inputs: LossInputs, totals: LossTotals, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        ratio_NT = log_ratio(inputs)
        upper_NT, lower_NT = ratio_NT.clamp(max=self.config.epsilon_high), ratio_NT.clamp(min=-self.config.epsilon_low)
        clipped_NT = torch.where(advantages_N[:, None] > 0, upper_NT, lower_NT)
        gain_N = masked_token_mean(clipped_NT, inputs.loss_mask).exp() * advantages_N
        dropped = (clipped_NT != ratio_NT)[inputs.loss_mask]
        return -gain_N.sum() / totals.num_rollouts, {"ratio/clipped_fraction": float(dropped.float().mean())}
