"""Section `[train]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from realrl.config.section import Count, PositiveInt, Section

AlarmKind = Literal["collapse", "entropy", "length", "gradient"]


def _current_layout(value: Any) -> Any:
    """Recipes of earlier versions name the tree of one level that there was "shared"."""
    return "tree" if value == "shared" else value


class TrainSection(Section):
    """Rounds, batches, and how the gradient is computed."""

    steps: PositiveInt = Field(default=100, description="number of sampling rounds")
    prompts_per_step: Count = Field(default=16, description="prompts, and so groups, in each round")
    mini_batch_prompts: Count = Field(default=16, description="groups in each optimizer step; divides `prompts_per_step`")
    micro_batch_tokens: PositiveInt = Field(
        default=32768, description="tokens in one pass through the model; changes the memory, not the gradient"
    )
    gradient_route: Literal["auto", "direct", "two_pass"] = Field(
        default="auto",
        description='how the exact gradient is computed: "direct", "two_pass", or "auto": "direct" if possible and cheaper',
    )
    layout: Annotated[Literal["auto", "tree", "packed", "padded"], BeforeValidator(_current_layout)] = Field(
        default="auto",
        description='layout of a micro-batch in memory: "tree", "packed", "padded", or "auto"; the result is the same',
    )
    parallel: Literal["ddp", "fsdp2"] = Field(
        default="ddp", description='with torchrun, each rank has: "ddp": the whole model; "fsdp2": a shard of it'
    )
    shuffle_rollouts: bool = Field(
        default=False,
        description="take the rows of a mini-batch in random order, which needs the two-pass route; the gradient is the same",
    )
    max_nonfinite_steps: PositiveInt = Field(
        default=5, description="stop the run after this many skipped updates in a row (loss or gradient not finite)"
    )
    stop_on: tuple[AlarmKind, ...] = Field(
        default=(), description='kinds of alarms that end the run with an error: "collapse", "entropy", "length", "gradient"'
    )
