"""Section `[optim]`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from realrl.config.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSection(Section):
    """The optimizer and its learning rate."""

    type: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description='"adamw", or "adamw_8bit": moments in 8 bits (bitsandbytes)'
    )
    master_weights: bool = Field(
        default=False, description="keep a float32 copy of bfloat16 weights, so that small updates are not lost"
    )
    lr: float = Field(default=2e-6, gt=0, description="highest learning rate")
    weight_decay: float = Field(default=0.01, ge=0, description="weight decay of AdamW")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="β₁ and β₂ of AdamW")
    eps: float = Field(default=1e-8, gt=0, description="ε of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description='learning rate after the warm-up: "constant"; "linear" or "cosine": falls towards 0 at the last round',
    )
    warmup_steps: int = Field(default=0, ge=0, description="rounds in which the learning rate rises to `lr`")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients with a larger norm are clipped to this norm")

    def factor(self, step: int, steps: int) -> float:
        """The factor of `lr` in sampling round `step` (from 0) of `steps`."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        if self.schedule == "linear":
            return 1 - progress
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1.0
