"""Log-probabilities of response tokens from any transformers causal language model.

Temperature-scaled, in float32. Only response tokens reach the head, and that in tiles (`head.py`). Three layouts give the same
values and gradients:

shared   one row without padding, in which the prompt of a group stands once, and what all prompts begin with stands once, too;
         attention lets each response follow its prompt (`prefix.py`)
packed   one row without padding, in which each response follows a prompt of its own; position ids that start again at 0
         keep them apart
padded   a row of its own for each prompt and response
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from realrl.head import Head, head_of, token_stats, without_wrapper
from realrl.prefix import Level, RefusedAttention, Tree, common_prefix
from realrl.types import Batch, Problem, Prompt

Layout = Literal["shared", "packed", "padded"]

# What the prompts of a trial begin with: long enough to stand once, and past the special tokens of most vocabularies.
_COMMON = (53, 71, 64, 91, 55, 89, 72, 66)
_VARIABLE_LENGTH = {"flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"}


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Per response token: log-probability (nats, with gradient), entropy of its distribution (nats, without gradient) and
    `top1`, 1 where no other token is more probable, else 0 (without gradient).

    All are 0 on padding.
    """

    logprobs: Float[Tensor, "N T"]
    entropy: Float[Tensor, "N T"]
    top1: Float[Tensor, "N T"]


def left_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "P L"], Int[Tensor, "P L"]]:
    """Token ids padded on the left with 0 and their attention mask (1 on real tokens)."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence, dtype=torch.long)
        attention[row, longest - len(sequence) :] = 1
    return ids.to(device), attention.to(device)


def response_logprobs(model: torch.nn.Module, batch: Batch, *, temperature: float, layout: Layout | None = None) -> TokenStats:
    """log π(o_t | q, o_<t) of each response token, of logits divided by `temperature`, in float32.

    `batch` is (N, T) with the prompts of its groups; rows may come in any order and from any part of a group. `model` may be in
    a PEFT wrapper. `layout` as in `layout_of`.
    """
    inner = without_wrapper(model)
    return _stats(inner, batch, temperature, layout_of(inner, layout))


def layout_of(model: torch.nn.Module, wanted: Layout | None = None) -> Layout:
    """Shared where the model can have it; else packed where its attention has a kernel for rows of any length; else padded.

    Or the one that is `wanted`: ValueError where the model cannot have it. A model is tried once, with a few small forward
    passes: where several processes hold one model, all must come here.
    """
    inner = without_wrapper(model)
    if wanted is not None:
        if wanted == "shared" and not shares_prompts(inner) or not _keeps_apart(inner, wanted):
            raise ValueError(
                f"layout {wanted!r} does not keep the rows of {type(inner).__name__} apart"
                f"{' under gradient checkpointing' if _keeps_apart(inner, wanted) else ''}; leave it out, or take 'padded'"
            )
        return wanted
    if shares_prompts(inner):
        return "shared"
    kernel = inner.config.get_text_config()._attn_implementation
    return "packed" if inner.device.type == "cuda" and kernel in _VARIABLE_LENGTH and packs(inner) else "padded"


def shares_prompts(model: torch.nn.Module) -> bool:
    """Whether a prompt can be computed once for all of its responses, gradient included."""
    inner = without_wrapper(model)
    # Checkpointing repeats the forward pass within backward, where attention is the model's own again.
    checkpointing = inner.training and any(getattr(module, "gradient_checkpointing", False) for module in inner.modules())
    return not checkpointing and _keeps_apart(inner, "shared")


def packs(model: torch.nn.Module) -> bool:
    """Whether rows can follow one another in one row, kept apart by their position ids alone."""
    return _keeps_apart(without_wrapper(model), "packed")


_tried: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[str, str | None], bool]] = weakref.WeakKeyDictionary()


def _keeps_apart(model: PreTrainedModel, layout: Layout) -> bool:
    """Tried on a few tokens, once for each model and kind of attention, so that no model's peculiarity goes unseen."""
    if layout == "padded":
        return True
    config: Any = model.config.get_text_config()
    # A window is longer than a trial, so it would go unseen.
    if layout == "shared" and not all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers):
        return False
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return False
    tried = _tried.setdefault(model, {})
    key = (layout, config._attn_implementation)
    if key not in tried:
        tried[key] = _equals_rows_alone(model, layout, config.vocab_size)
    return tried[key]


@torch.no_grad()
def _equals_rows_alone(model: PreTrainedModel, layout: Layout, vocabulary: int) -> bool:
    """Whether what a layout changes of rows without padding is small beside what other prompts change.

    Below float32 rounding alone may change more than that: then a layout may be twice as far from the rows as padding is.
    """
    loss_mask = torch.tensor([[True, True, False], [True] * 3, [True, False, False]], device=model.device)
    groups = torch.tensor([0, 1, 0], device=model.device)
    batch = Batch(
        prompts=_trial_prompts(vocabulary, shift=0),
        response_ids=torch.arange(9, device=model.device).view(3, 3) * 7 % vocabulary,
        loss_mask=loss_mask,
        group_ids=groups,
        rewards=torch.zeros(3, device=model.device),
        levels=groups,
        logprobs_sampler=torch.zeros(loss_mask.shape, device=model.device),
    )
    training = model.training
    model.eval()
    try:
        got = _stats(model, batch, 1.0, layout).logprobs
        padded = _stats(model, batch, 1.0, "padded").logprobs
        others = _stats(model, replace(batch, prompts=_trial_prompts(vocabulary, shift=1)), 1.0, "padded").logprobs
        alone = torch.zeros_like(got)
        for row, length in enumerate(loss_mask.sum(dim=1).tolist()):
            alone[row, :length] = _stats(model, _row_alone(batch, row, length), 1.0, "padded").logprobs[0]
    except RefusedAttention:
        return False
    finally:
        model.train(training)
    off = (got - alone).norm()
    if model.dtype != torch.float32 and bool(off <= 2 * (padded - alone).norm()):
        return True
    # In float32 models that keep rows apart are below 4e-5, in bfloat16 mostly below 4e-2.
    return bool(off < (1e-3 if model.dtype == torch.float32 else 0.05) * (others - alone).norm())


def _row_alone(batch: Batch, row: int, length: int) -> Batch:
    """A batch of one row without padding; its prompts stay."""
    cells = slice(row, row + 1)
    return replace(
        batch,
        response_ids=batch.response_ids[cells, :length],
        loss_mask=batch.loss_mask[cells, :length],
        group_ids=batch.group_ids[cells],
        rewards=batch.rewards[cells],
        levels=batch.levels[cells],
        logprobs_sampler=batch.logprobs_sampler[cells, :length],
    )


def _trial_prompts(vocabulary: int, shift: int) -> list[Prompt]:
    """Two prompts that begin alike; another `shift` gives other tokens throughout."""
    rows = (_COMMON + rest for rest in ((84,), (62, 76)))
    return [Prompt(Problem("", "", ""), "", tuple((token + shift) % vocabulary for token in row)) for row in rows]


def _stats(model: PreTrainedModel, batch: Batch, temperature: float, layout: Layout) -> TokenStats:
    head = head_of(model)
    states_M, cells_M = {"shared": _shared, "packed": _packed, "padded": _padded}[layout](model, head, batch)
    ids_M = batch.response_ids.flatten()[cells_M]
    values = token_stats(head, states_M, ids_M, temperature) if head else _eager_stats(states_M, ids_M, temperature)
    empty = torch.zeros(batch.loss_mask.numel(), device=cells_M.device)
    return TokenStats(*(empty.index_copy(0, cells_M, value).view(batch.loss_mask.shape) for value in values))


def _states(model: PreTrainedModel, head: Head | None, at_M: Tensor, keep: int, **inputs: Any) -> Tensor:
    """Hidden states (logits, where the head is not known) at `at_M`, indices into the last `keep` positions of all rows."""
    if head is not None:
        out = model.base_model(**inputs, use_cache=False).last_hidden_state
    elif len(inputs["input_ids"]) == 1:
        # Asked for by their places in the whole row.
        return model(**inputs, use_cache=False, logits_to_keep=at_M + inputs["input_ids"].shape[1] - keep).logits[0]
    else:
        out = model(**inputs, use_cache=False, logits_to_keep=keep).logits
    return out[:, -keep:].flatten(0, 1).index_select(0, at_M)


class _Prompts:
    """The prompts of a batch, right-padded; a response's own by `of_row`; `common` first tokens are the same in all."""

    def __init__(self, batch: Batch) -> None:
        device = batch.response_ids.device
        groups, self.of_row_N = torch.unique(batch.group_ids, return_inverse=True)
        sequences = [batch.prompts[group].token_ids for group in groups.tolist()]
        self.common = common_prefix(sequences)
        rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
        self.ids_PL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        self.lengths_P = torch.tensor([len(row) for row in rows], device=device)
        self.mask_PL = torch.arange(self.ids_PL.shape[1], device=device) < self.lengths_P[:, None]


def _padded(model: PreTrainedModel, head: Head | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """One pass over each row's prompt, padded on the left, and its response, padded on the right."""
    groups, of_row_N = torch.unique(batch.group_ids, return_inverse=True)
    ids_PL, attention_PL = left_pad([batch.prompts[group].token_ids for group in groups.tolist()], batch.response_ids.device)
    attention = torch.cat([attention_PL[of_row_N], batch.loss_mask.long()], dim=1)
    tokens = batch.response_ids.shape[1]
    cells_M = batch.loss_mask.flatten().nonzero()[:, 0]
    states_M = _states(
        model,
        head,
        # The state before a token predicts it.
        cells_M + cells_M // tokens,
        keep=tokens + 1,
        input_ids=torch.cat([ids_PL[of_row_N], batch.response_ids], dim=1),
        attention_mask=attention,
        position_ids=(attention.cumsum(dim=1) - 1).clamp(min=0),
    )
    return states_M, cells_M


def _packed(model: PreTrainedModel, head: Head | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """One pass over one row of all prompts and responses; no state is wanted after the last token of a response."""
    prompts = _Prompts(batch)
    width = prompts.ids_PL.shape[1]
    real = torch.cat([prompts.mask_PL[prompts.of_row_N], batch.loss_mask[:, 1:]], dim=1)
    ids = torch.cat([prompts.ids_PL[prompts.of_row_N], batch.response_ids[:, :-1]], dim=1)
    # The state at the last token of a prompt and at each of a response but the last.
    wanted = real.clone()
    wanted[:, :width] = torch.arange(width, device=real.device) == prompts.lengths_P[prompts.of_row_N, None] - 1
    states_M = _states(
        model,
        head,
        wanted[real].nonzero()[:, 0],
        keep=int(real.sum()),
        input_ids=ids[real][None],
        position_ids=(real.cumsum(dim=1) - 1)[real][None],
    )
    return states_M, batch.loss_mask.flatten().nonzero()[:, 0]


def _shared(model: PreTrainedModel, head: Head | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """One pass over one row: what all prompts begin with, the rest of every prompt, every response but for its last token."""
    prompts, rest_NT = _Prompts(batch), batch.loss_mask[:, 1:]
    common, device = prompts.common, rest_NT.device
    levels = [
        Level(prompts.ids_PL[:, common:], prompts.mask_PL[:, common:], torch.zeros_like(prompts.lengths_P)),
        Level(batch.response_ids[:, :-1], rest_NT, prompts.of_row_N),
    ]
    if common:
        levels.insert(
            0, Level(prompts.ids_PL[:1, :common], prompts.mask_PL[:1, :common], torch.zeros_like(prompts.lengths_P[:1]))
        )
    tree = Tree(levels)
    # A response's first token is predicted at the end of its prompt, the others in its own part of the row.
    ends_P = tree.ends(len(levels) - 2)
    length = len(tree.ids_S)
    with tree.attention(model):
        states_M = _states(
            model,
            head,
            torch.cat([ends_P[prompts.of_row_N], torch.arange(int(ends_P[-1]) + 1, length, device=device)]),
            keep=length,
            input_ids=tree.ids_S[None],
            position_ids=tree.positions_S[None],
        )
    cells_NT = torch.arange(batch.loss_mask.numel(), device=device).view_as(batch.loss_mask)
    return states_M, torch.cat([cells_NT[:, 0], cells_NT[:, 1:][rest_NT]])


def _eager_stats(logits: Float[Tensor, "M V"], ids: Int[Tensor, " M"], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """For a model whose head is not known: through its own logits."""
    scaled = logits.float() / temperature
    normaliser = scaled.logsumexp(dim=-1)
    own = scaled.gather(1, ids[:, None])[:, 0]
    with torch.no_grad():
        entropy = normaliser - (scaled.softmax(dim=-1) * scaled).sum(dim=-1)
        top1 = (own >= scaled.amax(dim=-1)).float()
    return own - normaliser, entropy, top1
