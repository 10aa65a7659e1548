"""CISPO: clipped importance weights instead of clipped updates (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from realrl.objectives.base import AdditiveObjective, BaseObjectiveConfig, register_objective
from realrl.objectives.scores import log_ratio
from realrl.types import LossInputs, LossTotals


class CISPOConfig(BaseObjectiveConfig):
    """Importance weights of at most 5, no KL; `max_ratio` is the paper's 1 + ε_high."""

    type: Literal["cispo"] = "cispo"
    max_ratio: float = Field(default=5.0, gt=0)


@register_objective(CISPOConfig)
class CISPO(AdditiveObjective):
    """−(1/Σ|o|) Σ_n Σ_t sg(min(ρ_t, c))·A_n·log π_θ(o_t): every token keeps a gradient, of a bounded weight.

    sg stops the gradient; c = `max_ratio` is an absolute cap of ρ. Σ|o| counts all response tokens of the step.

    Checked: Eq. 4, 5 of arXiv 2506.13585 in a public excerpt (clip(ρ, 1 − ε_low, 1 + ε_high), no lower bound in its
    experiments), TRL's grpo_trainer.py (`loss_type="cispo"`) and verl's core_algos.py. No ε_high of the paper was found; 5 is
    ScaleRL's cap, which TRL recommends. The paper divides by the tokens of each question, TRL and this by those of the step.
    """

    def surrogate(self, inputs: LossInputs, totals: LossTotals, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        ratio_NT = log_ratio(inputs).detach().exp()
        capped_NT = ratio_NT.clamp(max=self.config.max_ratio)
        gain_NT = capped_NT * advantages_N[:, None] * inputs.logprobs_policy
        loss = -torch.where(inputs.loss_mask, gain_NT, 0).sum() / totals.num_tokens
        capped = (ratio_NT > self.config.max_ratio)[inputs.loss_mask]
        return loss, {"ratio/clipped_fraction": float(capped.float().mean())}
