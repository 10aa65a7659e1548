"""Section `[reward]`."""

from __future__ import annotations

from pydantic import Field

from realrl.config.section import PositiveInt, Section


class RewardSection(Section):
    """The verifier, and the workers that run it."""

    type: str = Field(default="math", description='name of a verifier, or your own function as "module:name"')
    workers: int = Field(default=2, gt=0, le=1024, description="number of grading processes")
    timeout_s: float = Field(default=5.0, gt=0, le=3600, description="time limit for one answer, in seconds")
    memory_mib: PositiveInt = Field(
        default=1024, description="limit of one worker's address space, in MiB; on macOS of its main memory"
    )
    require_boxed: bool = Field(default=False, description="accept only an answer in `\\boxed{}`")
    require_think_close: bool = Field(default=False, description="accept only an answer after `</think>`")
    bare_answers: bool = Field(default=True, description="accept a formula at the end of the last line as the answer")
    format_weight: float = Field(
        default=0.0, ge=0, lt=1, description="share of the reward for an answer in a box, right or wrong"
    )
    threshold: float | None = Field(
        default=None, gt=0, le=1, description="scores of at least this value become reward 1, others 0"
    )
