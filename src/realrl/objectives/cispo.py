"""CISPO: clipped importance weights instead of clipped updates (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

import torch
from torch import Tensor

from realrl.objectives.base import AdditiveObjective
from realrl.objectives.configs import CISPOConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, log_ratio


class CISPO(CISPOConfig, AdditiveObjective):
    """−(1/Σ|o|) Σ_n Σ_t sg(min(ρ_t, c))·A_n·log π_θ(o_t): every token keeps a gradient, with a bounded weight.

    sg stops the gradient; c = `max_ratio` is an absolute cap on ρ. Σ|o| counts all response tokens of the step.

    Checked against Eq. 4, 5 of arXiv 2506.13585 in a public excerpt (clip(ρ, 1 − ε_low, 1 + ε_high), no lower bound in its
    experiments), TRL's grpo_trainer.py (`loss_type="cispo"`) and verl's core_algos.py. We found no ε_high in the paper; 5 is
    ScaleRL's cap, which TRL recommends. The paper divides by the tokens of each question; TRL and this class divide by those
    of the step.
    """

    def surrogate(self, inputs: LossInputs, whole: Groups, advantages_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        ratio_NT = log_ratio(inputs).detach().exp()
        capped_NT = ratio_NT.clamp(max=self.max_ratio)
        gain_NT = capped_NT * advantages_N[:, None] * inputs.logprobs_policy
        loss = -torch.where(inputs.loss_mask, gain_NT, 0).sum() / whole.num_tokens
        capped = (ratio_NT > self.max_ratio)[inputs.loss_mask]
        return loss, {"ratio/clipped_fraction": float(capped.float().mean())}
