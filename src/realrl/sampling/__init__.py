"""Samplers draw groups of rollouts from the policy, for training. Engines answer requests with texts, for evaluation."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.config import SAMPLERS, Config
from realrl.errors import ConfigError
from realrl.sampling.base import EngineOptions, Sampler, SamplingParams, TextEngine, TextRequest, TextResponse
from realrl.sampling.hf import HFSampler
from realrl.sampling.openai import EndpointEngine
from realrl.sampling.texts import HFEngine
from realrl.sampling.vllm import VLLMEngine, VLLMSampler
from realrl.sampling.weights import merged_weights, whole
from realrl.system.registry import Registry

__all__ = [
    "ENGINES",
    "SAMPLERS",
    "EngineOptions",
    "HFSampler",
    "Sampler",
    "SamplingParams",
    "TextEngine",
    "TextRequest",
    "TextResponse",
    "VLLMSampler",
    "build_engine",
    "build_sampler",
    "merged_weights",
    "whole",
]

# What `realrl eval --engine` can name. Each is called with `EngineOptions`.
ENGINES: Registry[Callable[[EngineOptions], Any]] = Registry(
    "--engine", "an engine class", {"hf": HFEngine, "vllm": VLLMEngine, "openai": EndpointEngine}, also=("auto",)
)


def build_sampler(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, longest_prompt: int, copy: bool = False
) -> Sampler:
    """The sampler that `sampling.engine` names. `longest_prompt`: tokens of the longest prompt seen so far.

    `copy`: the sampler keeps its own copy of the weights, because the trained weights change while it samples. Every rank must
    call this. Raises ConfigError for an unknown sampler, one that is not installed, and one that cannot follow the recipe.
    """
    name = config.sampling.engine
    sampler = SAMPLERS.find(name)(config, model, tokenizer, longest_prompt=longest_prompt, copy=copy)
    if not isinstance(sampler, Sampler):
        raise ConfigError(
            f"sampling.engine = {name!r} gave a {type(sampler).__name__}; a sampler has the methods sample and update_weights"
        )
    return sampler


def build_engine(name: str, options: EngineOptions) -> TextEngine:
    """The evaluation engine `name`. Raises ConfigError if it is unknown, not installed, or cannot run the model."""
    engine = ENGINES.find(name)(options)
    if not isinstance(engine, TextEngine):
        raise ConfigError(f"--engine {name!r} gave a {type(engine).__name__}; an engine has the methods generate and close")
    return engine
