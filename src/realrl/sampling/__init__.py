"""Samplers: groups of rollouts from a policy for training; engines: responses to requests for evaluation."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.config import Config
from realrl.errors import ConfigError
from realrl.sampling.base import Sampler, SamplingParams, TextEngine, TextRequest, TextResponse
from realrl.sampling.hf import HFSampler
from realrl.sampling.vllm import VLLMSampler
from realrl.sampling.weights import merged_weights, whole

__all__ = [
    "HFSampler",
    "Sampler",
    "SamplingParams",
    "TextEngine",
    "TextRequest",
    "TextResponse",
    "VLLMSampler",
    "build_sampler",
    "merged_weights",
    "whole",
]


def build_sampler(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, longest_prompt: int, copy: bool = False
) -> Sampler:
    """The sampler that `config.sampling` asks for; `longest_prompt` counts the tokens of the longest prompt that was seen.

    `copy`: not from the modules in training themselves (vLLM never does). Every rank has to call this.
    Raises ConfigError where its engine is not installed or cannot do what the recipe wants.
    """
    sampling = config.sampling
    dtype = None if sampling.dtype == "same" else torch.bfloat16
    if sampling.engine == "hf":
        return HFSampler(model, tokenizer, dtype=dtype, copy=copy, longest=longest_prompt + sampling.max_new_tokens)
    if not 0.01 <= sampling.temperature <= 2:
        raise ConfigError(
            f"sampling.temperature = {sampling.temperature}: vLLM takes 0.01 to 2; change it, or set sampling.engine = 'hf'"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # Generated prompts may still be longer than those that were seen.
    length = config.data.max_prompt_tokens + sampling.max_new_tokens
    return VLLMSampler(
        model,
        tokenizer,
        dtype=dtype or model.dtype,
        max_model_len=min(length, positions or length),
        batch_rows=sampling.batch_rows,
        gpu_memory=sampling.gpu_memory,
        seed=config.run.seed,
        sleep=sampling.sleep,
        cuts=sampling.top_p < 1 or sampling.top_k > 0 or (config.eval.top_p or 1) < 1,
    )
