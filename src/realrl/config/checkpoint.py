"""Section `[checkpoint]`."""

from __future__ import annotations

from pydantic import Field

from realrl.config.section import PositiveInt, Section


class CheckpointSection(Section):
    """When checkpoints are written."""

    every: int = Field(default=50, ge=0, description="rounds between checkpoints; 0: only after the last round")
    keep: PositiveInt = Field(default=3, description="number of newest checkpoints to keep")
