"""Exact log-probabilities of response tokens from a transformers causal language model, scaled by temperature, in float32.

`layouts.py` computes them; `trial.py` tests whether a model keeps the rows of a batch separate. Other models raise ModelError.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from realrl.errors import ModelError
from realrl.models.head import without_wrapper
from realrl.models.layouts import Layout, TokenStats, stats_in
from realrl.models.modes import repeats_other_passes
from realrl.models.trial import SHORT, layout_fault
from realrl.types import Batch

__all__ = ["Layout", "TokenStats", "layout_of", "longest_row", "packs", "response_logprobs", "shares_prompts"]

_VARIABLE_LENGTH = {"flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"}


def response_logprobs(model: torch.nn.Module, batch: Batch, *, temperature: float, layout: Layout | None = None) -> TokenStats:
    """log π(o_t | q, o_<t) of each response token, from logits divided by `temperature`, in float32.

    `batch` is (N, T) with the prompts of its groups; rows may be in any order and from any part of a group. `model` may be in
    a PEFT wrapper. `layout=None` chooses one, see `layout_of`.
    """
    inner = without_wrapper(model)
    return stats_in(inner, batch, temperature, layout_of(inner, layout, longest=longest_row(batch)))


def longest_row(batch: Batch) -> int:
    """Tokens that no row of the batch exceeds."""
    return max(len(prompt.token_ids) for prompt in batch.prompts) + batch.response_ids.shape[1]


def layout_of(model: torch.nn.Module, wanted: Layout | None = None, *, longest: int = SHORT) -> Layout:
    """The `wanted` layout, or the best one that is exact for this model.

    The order is tree, packed (if its attention kernel takes rows of any length), padded. The model is tested once, in its
    current mode, on a few short rows and on one row of `longest` tokens, the longest row to come. If several processes hold
    one model, all of them must call this. Raises ModelError if the wanted layout, or every layout, is not exact.
    """
    inner = without_wrapper(model)
    kernel = inner.config.get_text_config()._attn_implementation
    packed = inner.device.type == "cuda" and kernel in _VARIABLE_LENGTH
    choices: list[Layout] = [wanted] if wanted else ["tree", *(["packed"] if packed else []), "padded"]
    fault = None
    for layout in choices:
        fault = _fault(inner, layout, longest)
        if fault is None:
            return layout
    name = type(inner).__name__
    if wanted not in (None, "padded"):
        raise ModelError(f"layout {wanted!r} does not keep the rows of {name} separate ({fault}); omit it, or use 'padded'")
    raise ModelError(f"{name} cannot be trained exactly: {fault}")


def shares_prompts(model: torch.nn.Module, *, longest: int = SHORT) -> bool:
    """Whether a prompt can be computed once for all its responses, including the gradient."""
    return _fault(without_wrapper(model), "tree", longest) is None


def packs(model: torch.nn.Module, *, longest: int = SHORT) -> bool:
    """Whether position ids alone keep several rows separate when they are joined into one row."""
    return _fault(without_wrapper(model), "packed", longest) is None


# For each model: the layout, attention and mode that were tested → (length tested, fault found).
_tried: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[Any, ...], tuple[int, str | None]]] = weakref.WeakKeyDictionary()


def _fault(model: PreTrainedModel, layout: Layout, longest: int) -> str | None:
    """Why the layout is not exact, or None. Tested once for each kind of attention and mode, and again for longer rows."""
    if layout == "tree" and (unfit := _unfit_to_share(model)):
        return unfit
    config: Any = model.config.get_text_config()
    tried = _tried.setdefault(model, {})
    key = (layout, config._attn_implementation, any(module.training for module in model.modules()))
    length, fault = tried.get(key, (0, None))
    if fault is None and length < longest and not (length and _is_sharded(model)):
        with torch.autocast(model.device.type, enabled=False):
            for size in sorted({SHORT, max(longest, SHORT)}):
                fault = fault or (layout_fault(model, layout, size) if size > length else None)
        tried[key] = max(longest, SHORT), fault
    return fault


def _unfit_to_share(model: PreTrainedModel) -> str | None:
    """Why prompts cannot be shared, for reasons that a test would not show; None if they can."""
    if repeats_other_passes(model):
        return "gradient checkpointing repeats passes with the model's own attention (train_without_noise changes that)"
    kinds = {type(layer) for layer in DynamicCache(config=model.config.get_text_config()).layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return "it has layers with a state"
    return None


def _is_sharded(model: PreTrainedModel) -> bool:
    """Whether several processes hold parts of the weights; each of them has rows of its own."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
