"""Log-probabilities of response tokens from any transformers causal language model.

Temperature-scaled, in float32, with the prompt of a group computed once, gradient included, where the model's cache
allows it (exact: the same attention over the same keys, three times cheaper on short answers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from realrl.types import Batch

# Entropy needs a second pass over the logits; this many tokens at a time keep its memory small.
_ENTROPY_CHUNK = 256


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
    logits_of = _shared_prompt_logits if share else _full_logits
    stats_NT = [torch.zeros(batch.loss_mask.shape, device=device) for _ in range(2)]
    for columns, logits in logits_of(model, prompt_ids, prompt_attention, prompt_of_row, batch):
        counted = batch.loss_mask[:, columns]
        values = _token_stats(logits[counted], batch.response_ids[:, columns][counted], temperature)
        for index, value in enumerate(values):
            placed = torch.zeros(batch.loss_mask.shape, device=device)
            where = torch.zeros_like(batch.loss_mask)
            where[:, columns] = counted
            stats_NT[index] = stats_NT[index] + placed.masked_scatter(where, value)
    return TokenStats(logprobs=stats_NT[0], entropy=stats_NT[1])


def _positions(attention: Int[Tensor, "N L"]) -> Int[Tensor, "N L"]:
    return (attention.cumsum(dim=1) - 1).clamp(min=0)


def _shared_prompt_logits(model, prompt_ids, prompt_attention, prompt_of_row, batch: Batch):
    """Logits of the first response token from the prompt pass, of the others from a pass over the responses alone."""
    prompt = model(
        input_ids=prompt_ids,
        attention_mask=prompt_attention,
        position_ids=_positions(prompt_attention),
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,
        logits_to_keep=1,
    )
    yield slice(0, 1), prompt.logits[prompt_of_row]
    if batch.response_ids.shape[1] == 1:
        return
    cache = prompt.past_key_values
    cache.batch_select_indices(prompt_of_row)
    attention = torch.cat([prompt_attention[prompt_of_row], batch.loss_mask[:, :-1].long()], dim=1)
    rest = model(
        input_ids=batch.response_ids[:, :-1],
        attention_mask=attention,
        position_ids=_positions(attention)[:, prompt_ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    yield slice(1, None), rest.logits


def _full_logits(model, prompt_ids, prompt_attention, prompt_of_row, batch: Batch):
    """Logits from one pass over each row's prompt and response; only response positions reach the head."""
    ids = torch.cat([prompt_ids[prompt_of_row], batch.response_ids], dim=1)
    attention = torch.cat([prompt_attention[prompt_of_row], batch.loss_mask.long()], dim=1)
    out = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=_positions(attention),
        use_cache=False,
        logits_to_keep=batch.response_ids.shape[1] + 1,
    )
    yield slice(None), out.logits[:, :-1]


def _token_stats(logits: Float[Tensor, "M V"], ids: Int[Tensor, " M"], temperature: float) -> tuple[Tensor, Tensor]:
    scaled = logits.float() / temperature
    normaliser = scaled.logsumexp(dim=-1)
    logprobs = scaled.gather(1, ids[:, None])[:, 0] - normaliser
    with torch.no_grad():
        entropy = torch.cat(
            [
                lse - (chunk.softmax(dim=-1) * chunk).sum(dim=-1)
                for chunk, lse in zip(scaled.split(_ENTROPY_CHUNK), normaliser.split(_ENTROPY_CHUNK), strict=True)
            ]
        )
    return logprobs, entropy


def masked_mean(values: Float[Tensor, "N T"], loss_mask: Bool[Tensor, "N T"]) -> Float[Tensor, " N"]:
    """Mean over the response tokens of each rollout."""
    return torch.where(loss_mask, values, 0).sum(dim=1) / loss_mask.sum(dim=1)
