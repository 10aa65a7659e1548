"""Log-probabilities of response tokens from any transformers causal language model: exact, or refused.

Temperature-scaled, in float32. `layouts.py` computes them, `trial.py` tries whether a model keeps rows apart.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from realrl.errors import ModelError
from realrl.models.head import without_wrapper
from realrl.models.layouts import Layout, TokenStats, stats_in
from realrl.models.modes import repeats_passes
from realrl.models.trial import SHORT, layout_fault
from realrl.types import Batch

__all__ = ["Layout", "TokenStats", "layout_of", "packs", "response_logprobs", "shares_prompts"]

_VARIABLE_LENGTH = {"flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"}


def response_logprobs(model: torch.nn.Module, batch: Batch, *, temperature: float, layout: Layout | None = None) -> TokenStats:
    """log π(o_t | q, o_<t) of each response token, of logits divided by `temperature`, in float32.

    `batch` is (N, T) with the prompts of its groups; rows may come in any order and from any part of a group. `model` may be in
    a PEFT wrapper. `layout` as in `layout_of`.
    """
    inner = without_wrapper(model)
    longest = max(len(prompt.token_ids) for prompt in batch.prompts) + batch.response_ids.shape[1]
    return stats_in(inner, batch, temperature, layout_of(inner, layout, longest=longest))


def layout_of(model: torch.nn.Module, wanted: Layout | None = None, *, longest: int = SHORT) -> Layout:
    """Shared where the model can have it; else packed where its attention has a kernel for rows of any length; else padded.

    Or the one that is `wanted`. A model is tried once on a few short rows and on one of `longest` tokens, the longest to come,
    in the mode that it is in: where several processes hold one model, all must come here. Raises ModelError where the model
    cannot have the layout that is wanted, or none.
    """
    inner = without_wrapper(model)
    kernel = inner.config.get_text_config()._attn_implementation
    packed = inner.device.type == "cuda" and kernel in _VARIABLE_LENGTH
    choices: list[Layout] = [wanted] if wanted else ["shared", *(["packed"] if packed else []), "padded"]
    fault = None
    for layout in choices:
        fault = _fault(inner, layout, longest)
        if fault is None:
            return layout
    name = type(inner).__name__
    if wanted not in (None, "padded"):
        raise ModelError(f"layout {wanted!r} does not keep the rows of {name} apart ({fault}); leave it out, or take 'padded'")
    raise ModelError(f"{name} cannot be trained exactly: {fault}")


def shares_prompts(model: torch.nn.Module, *, longest: int = SHORT) -> bool:
    """Whether a prompt can be computed once for all of its responses, gradient included."""
    return _fault(without_wrapper(model), "shared", longest) is None


def packs(model: torch.nn.Module, *, longest: int = SHORT) -> bool:
    """Whether rows can follow one another in one row, kept apart by their position ids alone."""
    return _fault(without_wrapper(model), "packed", longest) is None


# For each model: what was tried, up to which length, and what was found.
_tried: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[Any, ...], tuple[int, str | None]]] = weakref.WeakKeyDictionary()


def _fault(model: PreTrainedModel, layout: Layout, longest: int) -> str | None:
    """Why rows are not kept apart in a layout; tried once for each kind of attention and mode, and again for longer rows."""
    if layout == "shared" and (unfit := _unfit_to_share(model)):
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
    """Why a prompt cannot be shared, where a trial would not show it."""
    if repeats_passes(model):
        # The repeated pass runs within backward, where attention is the model's own again.
        return "gradient checkpointing is on"
    if not all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config.get_text_config()).layers):
        return "it has layers with a window or a state"
    return None


def _is_sharded(model: PreTrainedModel) -> bool:
    """Whether its weights lie on several processes, each of which has rows of its own."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
