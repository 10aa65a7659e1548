"""Samplers: groups of rollouts from a policy for training; engines: responses to requests for evaluation."""

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

# What `realrl eval --engine` can name; called with `EngineOptions`.
ENGINES: Registry[Callable[[EngineOptions], Any]] = Registry(
    "--engine", "an engine class", {"hf": HFEngine, "vllm": VLLMEngine, "openai": EndpointEngine}, also=("auto",)
)


def build_sampler(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, longest_prompt: int, copy: bool = False
) -> Sampler:
    """The sampler that `sampling.engine` names; `longest_prompt` counts the tokens of the longest prompt that was seen.

    `copy`: the sampler must keep a copy of the weights, since the modules in training change while it samples. Every rank has
    to call this. Raises ConfigError for an unknown sampler, and where it is not installed or cannot do what the recipe wants.
    """
    name = config.sampling.engine
    sampler = SAMPLERS.find(name)(config, model, tokenizer, longest_prompt=longest_prompt, copy=copy)
    if not isinstance(sampler, Sampler):
        raise ConfigError(
            f"sampling.engine = {name!r} gave a {type(sampler).__name__}; a sampler has the methods sample and update_weights"
        )
    return sampler


def build_engine(name: str, options: EngineOptions) -> TextEngine:
    """The evaluation engine `name`; ConfigError for an unknown one, and where it is not installed or cannot run the model."""
    engine = ENGINES.find(name)(options)
    if not isinstance(engine, TextEngine):
        raise ConfigError(f"--engine {name!r} gave a {type(engine).__name__}; an engine has the methods generate and close")
    return engine
