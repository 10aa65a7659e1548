"""Section `[eval]`."""

from __future__ import annotations

from pydantic import Field

from realrl.config.section import Count, PositiveInt, Section


class EvalSection(Section):
    """Evaluations on the held-out sets, `data.eval`, in training."""

    every: int = Field(default=0, ge=0, description="rounds between evaluations; 0: evaluate only before and after training")
    samples: Count = Field(default=1, description="samples per problem in the mode `sampled`")
    top_p: float | None = Field(default=None, gt=0, le=1, description="top-p of evaluations; absent: `sampling.top_p`")
    problems: PositiveInt = Field(default=128, description="maximum problems from each held-out set")
    greedy: bool = Field(default=True, description="also decode each problem greedily, the mode `greedy`")
    at_start: bool = Field(default=True, description="evaluate before training")
