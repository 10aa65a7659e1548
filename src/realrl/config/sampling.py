"""Section `[sampling]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from realrl.config.section import Count, PositiveInt, Section
from realrl.errors import ConfigError
from realrl.system.registry import Registry

# Below this, logits divided by the temperature overflow, and samples are meaningless.
MIN_TEMPERATURE = 0.01
# What `sampling.engine` can name; called with the arguments of `realrl.sampling.build_sampler`. Names only: free of torch.
SAMPLERS: Registry[Callable[..., Any]] = Registry(
    "sampling.engine",
    "a sampler class",
    {"hf": "realrl.sampling.hf:HFSampler.of_recipe", "vllm": "realrl.sampling.vllm:VLLMSampler.of_recipe"},
)


class SamplingSection(Section):
    """How rollouts are sampled."""

    engine: str = Field(
        default="hf", description='"hf": transformers; "vllm": vLLM; or a sampler class of yours as "module:name"'
    )
    group_size: Count = Field(default=8, description="responses to each prompt")
    temperature: float = Field(
        default=1.0, ge=MIN_TEMPERATURE, description="temperature of sampling, and of every log-probability"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the most probable tokens that together have this probability"
    )
    top_k: int = Field(default=0, ge=0, description="sample from this many most probable tokens; 0: the whole vocabulary")
    max_new_tokens: Count = Field(default=256, description="maximum tokens of a response")
    dtype: Literal["auto", "same", "bfloat16"] = Field(
        default="same",
        description='type of the weights in sampling: "same" as in training; "bfloat16": a copy in bfloat16; "auto": bfloat16 '
        "if it is faster",
    )
    batch_rows: PositiveInt = Field(
        default=256, description="maximum responses decoded together, in training and in evaluations"
    )
    gpu_memory: float = Field(default=0.4, gt=0, le=1, description="vLLM: share of the GPU's memory for weights and KV cache")
    sleep: bool = Field(default=False, description="vLLM: free that memory while the policy is updated")
    steps_ahead: Literal[0, 1] = Field(
        default=0,
        description="1: sample the next round while the policy is updated, from the weights before these updates",
    )
    importance_cap: float = Field(
        default=0.0,
        ge=0,
        description="weight each token's gradient with min(trainer's probability / sampler's probability, cap); 0: no weights",
    )

    @field_validator("engine")
    @classmethod
    def _is_known(cls, engine: str) -> str:
        try:
            SAMPLERS.check(engine)
        except ConfigError as error:
            raise PydanticCustomError("unknown_part", "{message}", {"message": str(error)}) from error
        return engine
