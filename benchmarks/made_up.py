"""Models with random weights, random batches and a sampler of them: work whose amount counts and whose content does not."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from realrl.objectives import build_objective
from realrl.sampling import HFSampler, SamplingParams
from realrl.training.gradient import GradientSettings, MiniBatchGradient
from realrl.types import Batch, Problem, Prompt

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 256, 1024, 4, 4, 2
PROMPT = 32


def make_model(vocabulary: int, device: Any = "cpu", dtype: torch.dtype = torch.float32, **sizes: Any) -> Qwen2ForCausalLM:
    """A random Qwen2; `sizes` override the small one's. Its end token is never drawn: no rollout ends early."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 32768,
    }
    config = Qwen2Config(**(shape | sizes), vocab_size=vocabulary, eos_token_id=vocabulary, dtype=dtype)
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    torch.nn.Module.to(model, dtype)
    return model


def make_batch(groups: int, group_size: int, length: int, vocabulary: int, device: Any = "cpu", prompt: int = PROMPT) -> Batch:
    """Random responses of one length; half of each group is right."""
    generator = torch.Generator().manual_seed(1)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(1, vocabulary, shape, generator=generator)

    rows = groups * group_size
    rewards = (torch.arange(rows) % 2).float().to(device)
    return Batch(
        prompts=[Prompt(Problem(str(g), "", ""), "", tuple(tokens(prompt).tolist())) for g in range(groups)],
        response_ids=tokens(rows, length).to(device),
        loss_mask=torch.ones(rows, length, dtype=torch.bool, device=device),
        group_ids=torch.arange(groups, device=device).repeat_interleave(group_size),
        rewards=rewards,
        levels=1 + rewards.long(),
        logprobs_sampler=torch.zeros(rows, length, device=device),
    )


def gradient_step(model: Any, objective: Any = "real", **settings: Any) -> MiniBatchGradient:
    """Of an objective by name or by configuration; `settings` are the step's, by default 4,096 tokens a micro-batch."""
    built = build_objective({"type": objective} if isinstance(objective, str) else objective)
    return MiniBatchGradient(model, built, GradientSettings(**{"temperature": 1.0, "budget": 4096, **settings}))


def make_sampler(model: Any) -> HFSampler:
    """HFSampler with a tokenizer that knows no word: only token ids matter."""
    core = Tokenizer(models.WordLevel({"<eos>": model.config.eos_token_id}, unk_token="<eos>"))
    return HFSampler(model, PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"))


def sample(sampler: HFSampler, batch: Batch, length: int, group_size: int | None = None) -> None:
    """Rollouts of `length` tokens for the prompts of a batch, as many of each as the batch holds where no number is given."""
    each = group_size or len(batch) // len(batch.prompts)
    rollouts = sampler.sample(
        [prompt.token_ids for prompt in batch.prompts],
        group_size=each,
        params=SamplingParams(temperature=1.0, max_new_tokens=length),
        seeds=list(range(each * len(batch.prompts))),
    )
    assert all(len(rollout.token_ids) == length for rollout in rollouts)
