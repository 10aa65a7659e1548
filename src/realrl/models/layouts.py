"""Log-probabilities of response tokens in three layouts that give the same values and gradients.

tree     one row without padding that holds the prefix tree of the sequences (`tree.py`): tokens that several sequences start
         with stand there once, and attention follows the path of each sequence (`tree_attention.py`)
packed   one row without padding; each response follows its own copy of the prompt. Position ids that start again at 0
         separate them
padded   one row for each prompt and response, padded at the end, where a causal model never looks

Only response tokens reach the head, which works in tiles (`head.py`).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from realrl.models.head import Head, head_of, token_stats
from realrl.models.tree import prefix_tree
from realrl.models.tree_attention import attention_along
from realrl.types import Batch

Layout = Literal["tree", "packed", "padded"]


@dataclass(frozen=True, slots=True)
class TokenStats:
    """For each response token: log-probability (nats, with gradient), entropy of its distribution (nats, no gradient) and
    `top1`: 1 if no other token is more probable, else 0 (no gradient).

    All are 0 on padding.
    """

    logprobs: Float[Tensor, "N T"]
    entropy: Float[Tensor, "N T"]
    top1: Float[Tensor, "N T"]


def stats_in(model: PreTrainedModel, batch: Batch, temperature: float, layout: Layout) -> TokenStats:
    """Token statistics in the given layout, without a check that the model keeps rows separate in it."""
    head = head_of(model)
    states_M, cells_M = {"tree": _tree, "packed": _packed, "padded": _padded}[layout](model, head, batch)
    ids_M = batch.response_ids.flatten()[cells_M]
    values = token_stats(head, states_M, ids_M, temperature) if head else _eager_stats(states_M, ids_M, temperature)
    empty = torch.zeros(batch.loss_mask.numel(), device=cells_M.device)
    return TokenStats(*(empty.index_copy(0, cells_M, value).view(batch.loss_mask.shape) for value in values))


def plain_options(model: PreTrainedModel, **wanted: Any) -> dict[str, Any]:
    """The `wanted` options that the model's forward pass accepts, plus `use_cache=False` if it accepts that."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    cache = {"use_cache": False} if takes_any or "use_cache" in parameters else {}
    return cache | {name: value for name, value in wanted.items() if name in parameters}


def _states(model: PreTrainedModel, head: Head | None, at_M: Tensor, **inputs: Any) -> Tensor:
    """Hidden states (logits if the head is unknown) at `at_M`, positions counted over all rows, one row after the other."""
    width = inputs["input_ids"].shape[1]
    if head is not None:
        states = model.base_model(**inputs, use_cache=False).last_hidden_state
    else:
        columns, of_M = (at_M % width).unique(return_inverse=True)
        options = plain_options(model, logits_to_keep=columns)
        states = model(**inputs, **options).logits
        if "logits_to_keep" in options:
            at_M = at_M // width * len(columns) + of_M
    return states.flatten(0, 1).index_select(0, at_M)


def row_sequences(batch: Batch) -> list[np.ndarray]:
    """Prompt and response of each row as they go through the model: without the last token, which predicts nothing."""
    lengths, groups = batch.loss_mask.sum(dim=1).tolist(), batch.group_ids.tolist()
    prompts = {group: np.array(batch.prompts[group].token_ids) for group in set(groups)}
    return [
        np.concatenate([prompts[group], response[: length - 1]])
        for group, response, length in zip(groups, batch.response_ids.cpu().numpy(), lengths, strict=True)
    ]


class _Prompts:
    """The prompts of a batch, right-padded; `of_row_N` maps responses to prompts."""

    def __init__(self, batch: Batch) -> None:
        device = batch.response_ids.device
        groups, self.of_row_N = torch.unique(batch.group_ids, return_inverse=True)
        sequences = [batch.prompts[group].token_ids for group in groups.tolist()]
        rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
        self.ids_PL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        self.lengths_P = torch.tensor([len(row) for row in rows], device=device)
        self.mask_PL = torch.arange(self.ids_PL.shape[1], device=device) < self.lengths_P[:, None]


def _padded(model: PreTrainedModel, head: Head | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """One pass with one row for each response. It needs no mask; position ids are the default."""
    prompts, tokens = _Prompts(batch), batch.response_ids.shape[1]
    lengths_N1 = prompts.lengths_P[prompts.of_row_N, None]
    places_NT = lengths_N1 + torch.arange(tokens, device=lengths_N1.device)
    ids_NW = torch.nn.functional.pad(prompts.ids_PL, (0, tokens))[prompts.of_row_N].scatter(1, places_NT, batch.response_ids)
    ids_NW = ids_NW[:, : int((lengths_N1[:, 0] + batch.loss_mask.sum(dim=1)).max())]
    # The state before a token predicts that token.
    before_NT = places_NT - 1 + ids_NW.shape[1] * torch.arange(len(ids_NW), device=ids_NW.device)[:, None]
    return _states(model, head, before_NT[batch.loss_mask], input_ids=ids_NW), batch.loss_mask.flatten().nonzero()[:, 0]


def _packed(model: PreTrainedModel, head: Head | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """One pass over one row of all prompts and responses. The last token of a response is left out: it predicts nothing."""
    prompts = _Prompts(batch)
    width = prompts.ids_PL.shape[1]
    real = torch.cat([prompts.mask_PL[prompts.of_row_N], batch.loss_mask[:, 1:]], dim=1)
    ids = torch.cat([prompts.ids_PL[prompts.of_row_N], batch.response_ids[:, :-1]], dim=1)
    # The states at the last token of each prompt and at all response tokens except the last.
    wanted = real.clone()
    wanted[:, :width] = torch.arange(width, device=real.device) == prompts.lengths_P[prompts.of_row_N, None] - 1
    states_M = _states(
        model,
        head,
        wanted[real].nonzero()[:, 0],
        input_ids=ids[real][None],
        position_ids=(real.cumsum(dim=1) - 1)[real][None],
    )
    return states_M, batch.loss_mask.flatten().nonzero()[:, 0]


def _tree(model: PreTrainedModel, head: Head | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """One pass over one row with the prefix tree of all prompts and responses, whose last tokens predict nothing."""
    tree = prefix_tree(row_sequences(batch))
    # The state before a token predicts it.
    lengths = batch.loss_mask.sum(dim=1).tolist()
    at_M = np.concatenate([places[-length:] for places, length in zip(tree.places, lengths, strict=True)])
    ids_S, positions_S, at = (torch.from_numpy(one).to(model.device) for one in (tree.ids_S, tree.positions_S, at_M))
    with attention_along(tree, model):
        states_M = _states(model, head, at, input_ids=ids_S[None], position_ids=positions_S[None])
    return states_M, batch.loss_mask.flatten().nonzero()[:, 0]


def _eager_stats(logits: Float[Tensor, "M V"], ids: Int[Tensor, " M"], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Token statistics from the model's own logits, for a model whose head is unknown."""
    scaled = logits.float() / temperature
    normaliser = scaled.logsumexp(dim=-1)
    own = scaled.gather(1, ids[:, None])[:, 0]
    with torch.no_grad():
        entropy = normaliser - (scaled.softmax(dim=-1) * scaled).sum(dim=-1)
        top1 = (own >= scaled.amax(dim=-1)).float()
    return own - normaliser, entropy, top1
