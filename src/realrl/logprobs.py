"""Log-probabilities of response tokens from any transformers causal language model.

Temperature-scaled, in float32. Only response tokens reach the head, and that in chunks (`head.py`). The prompt of a group is
computed once, gradient included, where the model's cache allows it (exact: the same attention over the same keys).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from realrl.head import Head, head_of, token_stats
from realrl.types import Batch


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Per response token: log-probability (nats, with gradient) and entropy of the distribution (nats, without).

    Both are 0 on padding.
    """

    logprobs: Float[Tensor, "N T"]
    entropy: Float[Tensor, "N T"]


def left_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "P L"], Int[Tensor, "P L"]]:
    """Token ids padded on the left with 0 and their attention mask (1 on real tokens)."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence, dtype=torch.long)
        attention[row, longest - len(sequence) :] = 1
    return ids.to(device), attention.to(device)


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether a prompt's keys and values can be computed once and used by all of its responses, gradient included."""
    # Gradient checkpointing drops the cache, and layers with a window or a state do not keep the whole prompt.
    checkpointing = model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return not checkpointing and all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def response_logprobs(
    model: PreTrainedModel, batch: Batch, *, temperature: float, share_prompts: bool | None = None
) -> TokenStats:
    """log π(o_t | q, o_<t) of each response token, of logits divided by `temperature`, in float32.

    `batch` is (N, T) with the prompts of its groups; rows may come in any order and from any part of a group.
    `share_prompts` None takes the shared-prompt path where the model allows it.
    """
    device = batch.response_ids.device
    groups, prompt_of_row = torch.unique(batch.group_ids, return_inverse=True)
    prompt_ids, prompt_attention = left_pad([batch.prompts[g].token_ids for g in groups.tolist()], device)
    share = shares_prompts(model) if share_prompts is None else share_prompts
    head = head_of(model)
    passes = _shared_prompt_passes if share else _full_passes
    stats_NT = [torch.zeros(batch.loss_mask.shape, device=device) for _ in range(2)]
    for columns, states in passes(model, head, prompt_ids, prompt_attention, prompt_of_row, batch):
        counted = batch.loss_mask[:, columns]
        ids = batch.response_ids[:, columns][counted]
        values = (
            _eager_stats(states[counted], ids, temperature)
            if head is None
            else token_stats(head, states[counted], ids, temperature)
        )
        for index, value in enumerate(values):
            placed = torch.zeros(batch.loss_mask.shape, device=device)
            where = torch.zeros_like(batch.loss_mask)
            where[:, columns] = counted
            stats_NT[index] = stats_NT[index] + placed.masked_scatter(where, value)
    return TokenStats(logprobs=stats_NT[0], entropy=stats_NT[1])


def _positions(attention: Int[Tensor, "N L"]) -> Int[Tensor, "N L"]:
    return (attention.cumsum(dim=1) - 1).clamp(min=0)


def _states(model: PreTrainedModel, head: Head | None, keep: int, **inputs: Any) -> tuple[Tensor, Any]:
    """Hidden states (logits, where the head is not known) of the last `keep` positions (0: all), and the cache."""
    if head is None:
        out = model(**inputs, logits_to_keep=keep)
        return out.logits, out.past_key_values
    out = model.base_model(**inputs)
    return out.last_hidden_state[:, -keep:], out.past_key_values


def _shared_prompt_passes(model, head, prompt_ids, prompt_attention, prompt_of_row, batch: Batch):
    """States of the first response token from the prompt pass, of the others from a pass over the responses alone."""
    states, cache = _states(
        model,
        head,
        keep=1,
        input_ids=prompt_ids,
        attention_mask=prompt_attention,
        position_ids=_positions(prompt_attention),
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,
    )
    yield slice(0, 1), states[prompt_of_row]
    if batch.response_ids.shape[1] == 1:
        return
    cache.batch_select_indices(prompt_of_row)
    attention = torch.cat([prompt_attention[prompt_of_row], batch.loss_mask[:, :-1].long()], dim=1)
    states, _ = _states(
        model,
        head,
        keep=0,
        input_ids=batch.response_ids[:, :-1],
        attention_mask=attention,
        position_ids=_positions(attention)[:, prompt_ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    yield slice(1, None), states


def _full_passes(model, head, prompt_ids, prompt_attention, prompt_of_row, batch: Batch):
    """States from one pass over each row's prompt and response."""
    ids = torch.cat([prompt_ids[prompt_of_row], batch.response_ids], dim=1)
    attention = torch.cat([prompt_attention[prompt_of_row], batch.loss_mask.long()], dim=1)
    states, _ = _states(
        model,
        head,
        keep=batch.response_ids.shape[1] + 1,
        input_ids=ids,
        attention_mask=attention,
        position_ids=_positions(attention),
        use_cache=False,
    )
    yield slice(None), states[:, :-1]


def _eager_stats(logits: Float[Tensor, "M V"], ids: Int[Tensor, " M"], temperature: float) -> tuple[Tensor, Tensor]:
    """For a model whose head is not known: through its own logits."""
    scaled = logits.float() / temperature
    normaliser = scaled.logsumexp(dim=-1)
    logprobs = scaled.gather(1, ids[:, None])[:, 0] - normaliser
    with torch.no_grad():
        entropy = normaliser - (scaled.softmax(dim=-1) * scaled).sum(dim=-1)
    return logprobs, entropy


def masked_mean(values: Float[Tensor, "N T"], loss_mask: Bool[Tensor, "N T"]) -> Float[Tensor, " N"]:
    """Mean over the response tokens of each rollout."""
    return torch.where(loss_mask, values, 0).sum(dim=1) / loss_mask.sum(dim=1)
