"""The head of a language model in chunks of tokens: log-probabilities without logits of all tokens in memory.

Where there are several chunks backward computes their logits again, so that memory holds one chunk × vocabulary whatever the
number of tokens.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

# Logits of one chunk: about 128 MiB in float32, but never fewer tokens than it takes to keep a matrix product busy.
_CHUNK_ELEMENTS = 1 << 25
_FEWEST_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Head:
    """logits = scale · cap · tanh(hidden Wᵀ + b) / cap, without the tanh where `softcap` is None (Gemma 2 has one)."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None
    scale: float

    def logits(self, hidden: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        """In float32; the product itself in the type of `hidden`, or in autocast's."""
        out = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.softcap is not None:
            out = self.softcap * torch.tanh(out / self.softcap)
        return out if self.scale == 1 else out * self.scale


def tokens_at_once(vocabulary: int) -> int:
    """How many tokens' logits are in memory together."""
    return max(_FEWEST_TOKENS, _CHUNK_ELEMENTS // vocabulary)


_known: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def head_of(model: PreTrainedModel) -> Head | None:
    """The model's head, where hidden states put through it give the model's own logits; None for one that is not known.

    Tried once for each model on two tokens, so that no model's peculiarity goes unseen.
    """
    head = _head(model)
    if model not in _known:
        _known[model] = head is not None and _agrees(model, head)
    return head if _known[model] else None


def _head(model: PreTrainedModel) -> Head | None:
    linear = model.get_output_embeddings()
    if not isinstance(linear, torch.nn.Linear) or type(linear) is not torch.nn.Linear or model.base_model is model:
        return None
    config: Any = model.config.get_text_config()
    divided = getattr(config, "logits_scaling", None)
    scale = 1 / divided if divided else getattr(config, "logit_scale", None) or 1.0
    return Head(linear.weight, linear.bias, getattr(config, "final_logit_softcapping", None), float(scale))


@torch.no_grad()
def _agrees(model: PreTrainedModel, head: Head) -> bool:
    training = model.training
    model.eval()
    try:
        ids = torch.tensor([[0, 1]], device=model.device)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        wanted = model(input_ids=ids, use_cache=False).logits
        tolerance = 1e-3 if wanted.dtype == torch.float32 else 0.1
        return torch.allclose(head.logits(hidden), wanted.float(), rtol=tolerance, atol=tolerance)
    finally:
        model.train(training)


def token_stats(
    head: Head, hidden: Float[Tensor, "M H"], ids: Int[Tensor, " M"], temperature: float
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Log-probability (with gradient) and entropy (without) of each token, of logits divided by `temperature`; in nats."""
    logprobs, entropy = _ChunkedStats.apply(hidden, head.weight, head.bias, head.softcap, head.scale / temperature, ids)  # pyright: ignore[reportGeneralTypeIssues]
    return logprobs, entropy


class _ChunkedStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float, ids: Tensor
    ):
        kind = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        ctx.softcap, ctx.scale = softcap, scale
        ctx.rows = tokens_at_once(len(weight))
        logprobs, entropy, normaliser = (torch.empty(len(hidden), device=hidden.device) for _ in range(3))
        with torch.autocast(kind, enabled=False):
            for part in _slices(len(hidden), ctx.rows):
                logits, slope = _scaled_logits(ctx, hidden[part], weight, bias)
                lse = logits.logsumexp(dim=-1)
                normaliser[part] = lse
                logprobs[part] = logits.gather(1, ids[part, None])[:, 0] - lse
                probs = (logits - lse[:, None]).exp_()
                entropy[part] = lse - torch.linalg.vecdot(probs, logits)
        # One chunk is small enough to keep; several are computed again.
        ctx.kept = (probs, slope) if 0 < len(hidden) <= ctx.rows else None
        ctx.save_for_backward(hidden, weight, bias, ids, normaliser)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        hidden, weight, bias, ids, normaliser = ctx.saved_tensors
        grad_M = gradients[0]
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if want_hidden else None
        to_weight = torch.zeros_like(weight) if want_weight else None
        to_bias = torch.zeros_like(bias) if want_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _slices(len(hidden), ctx.rows):
                if ctx.kept is not None:
                    probs, slope = ctx.kept
                else:
                    logits, slope = _scaled_logits(ctx, hidden[part], weight, bias)
                    probs = logits.sub_(normaliser[part, None]).exp_()
                # d logprob / d logits = one-hot − softmax, times the slope of scale and soft cap.
                delta = probs * -grad_M[part, None] if ctx.kept is not None else probs.mul_(-grad_M[part, None])
                delta.scatter_add_(1, ids[part, None], grad_M[part, None])
                delta = (delta if slope is None else delta.mul_(slope)).mul_(ctx.scale)
                if to_bias is not None:
                    to_bias += delta.sum(dim=0).to(to_bias.dtype)
                delta = delta.to(ctx.dtype)
                if to_hidden is not None:
                    to_hidden[part] = (delta @ weight.to(ctx.dtype)).to(hidden.dtype)
                if to_weight is not None:
                    if to_weight.dtype == ctx.dtype:
                        to_weight.addmm_(delta.T, hidden[part].to(ctx.dtype))
                    else:
                        to_weight += (delta.T @ hidden[part].to(ctx.dtype)).to(to_weight.dtype)
        return to_hidden, to_weight, to_bias, None, None, None


def _slices(length: int, rows: int) -> list[slice]:
    return [slice(first, min(first + rows, length)) for first in range(0, length, rows)]


def _scaled_logits(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits of a chunk times the scale, in float32, and the slope of the soft cap where there is one."""
    out = torch.nn.functional.linear(
        hidden.to(ctx.dtype), weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
    ).float()
    slope = None
    if ctx.softcap is not None:
        capped = torch.tanh(out / ctx.softcap)
        slope, out = 1 - capped**2, capped * ctx.softcap
    return out.mul_(ctx.scale), slope
