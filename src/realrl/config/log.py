"""Section `[log]`."""

from __future__ import annotations

from pydantic import Field

from realrl.config.section import Section


class LogSection(Section):
    """What a run prints and saves beside its metrics."""

    rich: bool = Field(default=True, description="show progress bars on a terminal")
    wandb: bool = Field(default=False, description="also log to Weights & Biases; needs the extra `wandb`")
    trackio: bool = Field(default=False, description="also log to Trackio; needs the extra `trackio`")
    tensorboard: bool = Field(default=False, description="also log to TensorBoard; needs the extra `tensorboard`")
    rollouts: bool = Field(default=True, description="save every rollout")
    tokens: bool = Field(default=False, description="save token ids and log-ratios with the rollouts, 6 bytes per token")
    figure: bool = Field(default=True, description="draw `learning_curve.png` at the end")
    examples: int = Field(
        default=3, ge=0, description="number of problems printed at the end, with answers before and after training"
    )
