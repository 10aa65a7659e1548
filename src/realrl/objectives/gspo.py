"""GSPO: a clipped importance ratio of the whole sequence."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from realrl.objectives.base import AdditiveObjective, BaseObjectiveConfig, register_objective
from realrl.objectives.scores import mean_log_ratio
from realrl.types import LossInputs, LossTotals


class GSPOConfig(BaseObjectiveConfig):
    """ε_low = 3e-4, ε_high = 4e-4, no KL."""

    type: Literal["gspo"] = "gspo"
    epsilon_low: float = Field(default=3e-4, gt=0)
    epsilon_high: float = Field(default=4e-4, gt=0)


@register_objective(GSPOConfig)
class GSPO(AdditiveObjective):
    """−(1/N) Σ_n min(u_n A_n, clip(u_n, 1−ε_low, 1+ε_high) A_n) with u = e^{s̄}, the length-normalised sequence ratio.

    Defaults: ε_low = 3e-4, ε_high = 4e-4, no KL.
    """

    def surrogate(self, inputs: LossInputs, totals: LossTotals, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        ratio_N = mean_log_ratio(inputs).exp()
        clipped_N = ratio_N.clamp(1 - self.config.epsilon_low, 1 + self.config.epsilon_high)
        gain_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
        dropped_N = clipped_N * advantages_N < ratio_N * advantages_N
        return -gain_N.sum() / totals.num_rollouts, {"ratio/clipped_fraction": float(dropped_N.float().mean())}
