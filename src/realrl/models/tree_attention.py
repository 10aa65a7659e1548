"""Attention for a row that holds a prefix tree, and its gradient, put together from the parts of `tree_parts.py`.

Each part gives its own output and the log-sum-exp of its scores; the outputs are added, weighted by the log-sum-exps. With the
output and the log-sum-exp of the whole, the backward pass of a part gives the whole's gradient, restricted to the part's keys.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from realrl.models.tree import PrefixTree
from realrl.models.tree_flex import block_mask_of, flex_along_paths
from realrl.models.tree_parts import Part, parts_of

_NAME = "realrl_tree"


class RefusedAttention(Exception):
    """A model's attention has something that the tree's does not know."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How queries and keys make scores: q·k · `scale`; with a `softcap` c, c · tanh(q·k · `scale` / c)."""

    scale: float
    softcap: float | None


class _AlongPaths(torch.autograd.Function):
    """(S, heads, D) queries, (S, key heads, D) keys and values, (heads,) sinks or None → (S, heads, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, parts: Sequence[Part], scores: Scores
    ) -> Tensor:
        out = torch.empty((*query.shape[:2], value.shape[2]), dtype=torch.float32, device=query.device)
        lse = out.new_empty(query.shape[:2])
        for part in parts:
            own, own_lse = _attend(part.queries.take(query), part.keys.take(key), part.keys.take(value), part, scores)
            if not part.first:
                before, before_lse = part.queries.take(out), part.queries.take(lse)
                both = torch.logaddexp(before_lse, own_lse)
                own = before * (before_lse - both).exp()[..., None] + own * (own_lse - both).exp()[..., None]
                own_lse = both
            part.queries.put(out, own)
            part.queries.put(lse, own_lse)
        if sinks is not None:
            # A sink is one more key, whose value is 0.
            both = torch.logaddexp(lse, sinks.float())
            out *= (lse - both).exp()[..., None]
            lse = both
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.parts, ctx.scores = parts, scores
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, sinks, out, lse = ctx.saved_tensors
        grads = [torch.zeros_like(states, dtype=torch.float32) for states in (query, key, value)]
        for part in ctx.parts:
            found = _attend_backward(
                # On padding no gradient comes in and every share of the softmax is 0, so none goes out.
                part.queries.take(grad_out, 0),
                part.queries.take(out),
                part.queries.take(lse, torch.inf),
                part.queries.take(query),
                part.keys.take(key),
                part.keys.take(value),
                part,
                ctx.scores,
            )
            for total, one, places in zip(grads, found, (part.queries, part.keys, part.keys), strict=True):
                places.add(total, one)
        grad_sinks = None
        if sinks is not None:
            share = (sinks.float() - lse).exp()
            grad_sinks = -(share * (grad_out * out).float().sum(dim=-1)).sum(dim=0).to(sinks.dtype)
        return *(grad.to(states.dtype) for grad, states in zip(grads, (query, key, value), strict=True)), grad_sinks, None, None


def _attend(query: Tensor, key: Tensor, value: Tensor, part: Part, scores: Scores) -> tuple[Tensor, Tensor]:
    """(B, L, heads, D) queries and (B, K, key heads, D) keys and values → the output and its log-sum-exp (B, L, heads)."""
    if _has_kernel(query, scores):
        q, k, v = (states.transpose(1, 2) for states in (query, key, value))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, part.causal, attn_mask=part.bias(query.dtype), scale=scores.scale
        )
        return out.transpose(1, 2).float(), lse.transpose(1, 2)
    found, _ = _scores(query, key, part, scores)
    lse = found.logsumexp(dim=-1)
    out = torch.einsum("bkrlm,bmkd->blkrd", (found - lse[..., None]).exp(), value.float())
    return out.flatten(2, 3), lse.flatten(1, 2).transpose(1, 2)


def _attend_backward(
    grad: Tensor, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor, part: Part, scores: Scores
) -> tuple[Tensor, ...]:
    """Gradients of a part's queries, keys and values, in their shapes; `out` and `lse` are those of the whole."""
    if _has_kernel(query, scores):
        g, o, q, k, v = (states.transpose(1, 2) for states in (grad, out, query, key, value))
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, q, k, v, o, lse.transpose(1, 2), 0.0, part.causal, attn_mask=part.bias(query.dtype), scale=scores.scale
        )
        return tuple(states.transpose(1, 2) for states in found)
    found, slope = _scores(query, key, part, scores)
    groups = key.shape[2], query.shape[2] // key.shape[2]
    grouped_grad, grouped_query = (states.float().unflatten(2, groups) for states in (grad, query))
    shares = (found - lse.transpose(1, 2).unflatten(1, groups)[..., None]).exp()
    along_out = (grad.float() * out.float()).sum(dim=-1).transpose(1, 2).unflatten(1, groups)[..., None]
    grad_scores = shares * (torch.einsum("blkrd,bmkd->bkrlm", grouped_grad, value.float()) - along_out) * slope
    return (
        torch.einsum("bkrlm,bmkd->blkrd", grad_scores, key.float()).flatten(2, 3),
        torch.einsum("bkrlm,blkrd->bmkd", grad_scores, grouped_query),
        torch.einsum("bkrlm,blkrd->bmkd", shares, grouped_grad),
    )


def _scores(query: Tensor, key: Tensor, part: Part, scores: Scores) -> tuple[Tensor, Tensor]:
    """(B, key heads, query heads of each, L, K) in float32, -inf where a query does not see a key; and the slope to q·k."""
    grouped = query.float().unflatten(2, (key.shape[2], -1))
    found = torch.einsum("blkrd,bmkd->bkrlm", grouped, key.float()) * scores.scale
    slope = torch.full_like(found, scores.scale)
    if scores.softcap is not None:
        found = (found / scores.softcap).tanh()
        slope *= 1 - found.square()
        found = found * scores.softcap
    mask = part.mask_BLK
    if part.causal:
        mask = torch.ones(found.shape[-2:], dtype=torch.bool, device=found.device).tril()
    elif mask is not None:
        mask = mask[:, None, None]
    return (found if mask is None else found.masked_fill(~mask, -torch.inf)), slope


def _has_kernel(query: Tensor, scores: Scores) -> bool:
    return query.device.type == "cpu" and scores.softcap is None


class TreeAttention:
    """transformers' interface to attention for a row that holds a prefix tree.

    `windowed`: indices of the layers that the configuration gives a window.
    """

    def __init__(self, tree: PrefixTree, device: torch.device, windowed: Collection[int] = ()) -> None:
        self._windowed = windowed
        self._parts = functools.cache(lambda window: parts_of(tree, window, device))
        self._mask = functools.cache(lambda window: block_mask_of(tree, window, device))

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None,
        softcap: float | None = None, s_aux: Tensor | None = None, position_bias: Tensor | None = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Query, key and value (1, heads, S, D) → (1, S, heads, D). Raises RefusedAttention for a mask, a bias or dropout."""
        for what, given in {"a mask": attention_mask, "a position bias": position_bias, "dropout": dropout or None}.items():
            if given is not None:
                raise RefusedAttention(f"its attention takes {what}")
        if sliding_window is None and getattr(module, "layer_idx", None) in self._windowed:
            raise RefusedAttention("a layer's window is in its mask alone")
        width, of_value = query.shape[3], value.shape[3]
        scale = width**-0.5 if scaling is None else scaling
        # As for torch's own attention.
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        query, key, value = (one.to(dtype) for one in (query, key, value))
        with torch.autocast(kind, enabled=False):
            if kind == "cuda":
                return flex_along_paths(query, key, value, s_aux, self._mask(sliding_window), scale, softcap), None
            # The kernel wants keys and values of one width.
            value = torch.nn.functional.pad(value, (0, max(0, width - of_value)))
            rows = [one[0].transpose(0, 1) for one in (query, key, value)]
            out = _AlongPaths.apply(*rows, s_aux, self._parts(sliding_window), Scores(scale, softcap))
        return out[None, ..., :of_value], None


@dataclass(frozen=True, slots=True)
class Switch:
    """The configuration in which a model looks up its attention, and the attention along a tree that it gets."""

    config: Any
    attention: TreeAttention


_now: list[Switch] = []


@contextmanager
def attention_along(tree: PrefixTree, model: PreTrainedModel) -> Iterator[None]:
    """Within, the model's attention follows the paths of the tree."""
    config = model.config.get_text_config()
    layers = DynamicCache(config=config).layers
    windowed = {index for index, layer in enumerate(layers) if isinstance(layer, DynamicSlidingWindowLayer)}
    with switched(Switch(config, TreeAttention(tree, model.device, windowed))):
        yield


def current_switch() -> Switch | None:
    """What `switched` takes to bring the attention of this moment back; None for the model's own."""
    return _now[-1] if _now else None


@contextmanager
def switched(switch: Switch | None) -> Iterator[None]:
    """Within, the model has the attention of the switch; None changes nothing."""
    if switch is None or current_switch() is switch:
        yield
        return
    before = switch.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_NAME, switch.attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, lambda *args, **kwargs: None)
    switch.config._attn_implementation = _NAME
    _now.append(switch)
    try:
        yield
    finally:
        _now.pop()
        switch.config._attn_implementation = before
