"""Log-probabilities from the head of a language model in tiles of tokens × vocabulary, never with all logits in memory.

Sums over the vocabulary are updated tile by tile, so memory holds one tile at a time. The backward pass computes the logits
again, unless all of them together are small enough to keep.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from realrl.models.modes import evaluating
from realrl.system.memory import out_of_memory

# A tile must be large enough for an efficient matrix product. On a CPU it must fit the cache, since it is read several times.
_TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
_TILE_TOKENS = {"cpu": 512, "cuda": 2048}
# Up to 128 MiB of float32 exponentials are kept for the backward pass.
_KEPT_ELEMENTS = 1 << 25
# Logits above the cap of any model (30 to 50).
_LARGE = 1000.0


@dataclass(frozen=True, slots=True)
class Head:
    """logits = scale · cap · tanh((hidden Wᵀ + b) / cap); there is no tanh if `softcap` is None (Gemma 2 has one)."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None
    scale: float

    def logits(self, hidden: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        """Logits in float32; the matrix product runs in the dtype of `hidden` or of autocast."""
        out = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.softcap is not None:
            out = self.softcap * torch.tanh(out / self.softcap)
        return out if self.scale == 1 else out * self.scale


def tokens_at_once(vocabulary: int) -> int:
    """The largest number of tokens whose logits are in memory at the same time."""
    return max(1, _KEPT_ELEMENTS // vocabulary)


def without_wrapper(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper; raises ValueError for prompt learning, which changes the input instead."""
    inner: Any = model
    if hasattr(model, "get_base_model"):
        if inner.active_peft_config.is_prompt_learning:
            raise ValueError("log-probabilities ignore learned prompts; use an adapter inside the layers, such as LoRA")
        inner = inner.get_base_model()
    return inner


_known: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def head_of(model: PreTrainedModel) -> Head | None:
    """The model's head, or None if the head applied to the hidden states does not give the model's own logits.

    The comparison runs once for each model, on two tokens.
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
    """Compare the logits, once for normal hidden states and once for states so large that a cap on the logits shows."""
    base, seen, factor = model.base_model, [], 1.0

    def enlarge(module: Any, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * factor
        seen.append(output.last_hidden_state)
        return output

    hook = base.register_forward_hook(enlarge)
    try:
        with evaluating(model), torch.autocast(model.device.type, enabled=False):
            for _ in range(2):
                wanted = model(input_ids=torch.tensor([[0, 1]], device=model.device), use_cache=False).logits
                off = (head.logits(seen[-1]) - wanted).norm() / wanted.norm()
                if not bool(off < (1e-3 if wanted.dtype == torch.float32 else 0.05)):
                    return False
                factor = max(1.0, _LARGE / float(wanted.abs().max()))
        return True
    except Exception as error:  # noqa: BLE001  another kind of base model: its own logits are used
        if out_of_memory(error):
            raise
        return False
    finally:
        hook.remove()


def token_stats(
    head: Head, hidden: Float[Tensor, "M H"], ids: Int[Tensor, " M"], temperature: float
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Three float32 values for each token, from logits divided by `temperature`: its log-probability (nats, with gradient),
    the entropy of its distribution (nats, no gradient), and 1 if no other token is more probable, else 0 (no gradient)."""
    keep = torch.is_grad_enabled() and len(hidden) * len(head.weight) <= _KEPT_ELEMENTS and head.softcap is None
    return _TiledStats.apply(hidden, head.weight, head.bias, head.softcap, head.scale / temperature, ids, keep)  # pyright: ignore[reportReturnType]


class _TiledStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, softcap: float | None, scale: float, ids: Tensor, keep: bool):
        kind = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        ctx.softcap, ctx.scale, ctx.kept = softcap, scale, {} if keep else None
        total_M, weighted_M, picked_M = (torch.zeros(len(hidden), device=hidden.device) for _ in range(3))
        # Finite, not -inf: in the first tile 0 times the difference must be 0, not NaN.
        highest_M = torch.full_like(total_M, -1e30)
        with torch.autocast(kind, enabled=False):
            low = hidden.to(ctx.dtype)
            row_blocks, column_blocks, logits_out, exps_out = _tiling(len(hidden), len(weight), hidden.device, buffers=2)
            for columns in column_blocks:
                part = _cast(ctx, weight, bias, columns)
                for rows in row_blocks:
                    logits = _tile_logits(ctx, low[rows], *part, logits_out)
                    column, inside = _column(ids[rows], columns)
                    picked_M[rows] += torch.where(inside, logits.gather(1, column[:, None])[:, 0], 0)
                    before, highest = highest_M[rows], torch.maximum(highest_M[rows], logits.amax(dim=1))
                    logits.sub_(highest[:, None])
                    exps = torch.exp(logits, out=None if keep else _view(exps_out, logits.shape))
                    # Sums of e and of e · (logit − highest), rescaled to the new highest logit.
                    shrink = torch.exp(before - highest)
                    weighted_M[rows] = shrink * (weighted_M[rows] + (before - highest) * total_M[rows])
                    total_M[rows] = shrink * total_M[rows] + exps.sum(dim=1)
                    weighted_M[rows] += logits.mul_(exps).sum(dim=1)
                    highest_M[rows] = highest
                    if ctx.kept is not None:
                        ctx.kept[rows.start, columns.start] = exps, highest
        spread_M = total_M.log()
        logprobs_M, entropy_M = picked_M - highest_M - spread_M, spread_M - weighted_M / total_M
        top1_M = (picked_M >= highest_M).float()
        ctx.save_for_backward(hidden, weight, bias, ids, highest_M + spread_M)
        ctx.mark_non_differentiable(entropy_M, top1_M)
        return logprobs_M, entropy_M, top1_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        hidden, weight, bias, ids, normaliser_M = ctx.saved_tensors
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        # d logprob / d logits = one-hot − softmax. A tile holds its negative. The other factor of the chain rule is one number
        # per row; it multiplies hidden states and their gradient, which have fewer columns than a tile.
        outer_M1 = (gradients[0] * -ctx.scale)[:, None]
        to_hidden = torch.zeros(hidden.shape, device=hidden.device) if want_hidden else None
        to_weight = torch.empty_like(weight) if want_weight else None
        to_bias = torch.zeros(len(weight), device=weight.device) if want_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            low, outer = hidden.to(ctx.dtype), (hidden * outer_M1).to(ctx.dtype)
            row_blocks, column_blocks, out = _tiling(len(hidden), len(weight), hidden.device, buffers=1)
            for columns in column_blocks:
                part = _cast(ctx, weight, bias, columns)
                # The sum over all tokens is in float32, whatever the weight's dtype.
                sums = torch.zeros(part[0].shape, device=weight.device) if want_weight else None
                for rows in row_blocks:
                    slope = None
                    if ctx.kept is not None:
                        exps, highest = ctx.kept[rows.start, columns.start]
                        shrink = torch.exp(highest - normaliser_M[rows])
                        delta = torch.mul(exps, shrink[:, None], out=_view(out, exps.shape))
                    else:
                        logits = _tile_logits(ctx, low[rows], *part, out)
                        if ctx.softcap is not None:
                            slope = 1 - (logits / (ctx.softcap * ctx.scale)).square_()
                        delta = logits.sub_(normaliser_M[rows, None]).exp_()
                    column, inside = _column(ids[rows], columns)
                    delta.scatter_add_(1, column[:, None], -inside.float()[:, None])
                    if slope is not None:
                        delta.mul_(slope)
                    if to_bias is not None:
                        to_bias[columns] += (delta.T @ outer_M1[rows])[:, 0]
                    delta = delta.to(ctx.dtype)
                    if to_hidden is not None:
                        _add_product(to_hidden[rows], delta, part[0])
                    if sums is not None:
                        _add_product(sums, delta.T, outer[rows])
                if to_weight is not None and sums is not None:
                    to_weight[columns] = sums
        return (
            None if to_hidden is None else to_hidden.mul_(outer_M1).to(hidden.dtype),
            to_weight,
            None if to_bias is None else to_bias.to(bias.dtype),
            *[None] * 4,
        )


def _tiling(tokens: int, vocabulary: int, device: torch.device, buffers: int):
    """Row blocks, column blocks and float32 buffers for tiles, allocated once because new memory costs more than a pass."""
    kind = "cpu" if device.type == "cpu" else "cuda"
    rows = max(1, min(tokens, _TILE_TOKENS[kind]))
    columns = min(vocabulary, max(1, _TILE_ELEMENTS[kind] // rows))
    room = [torch.empty(rows * columns, device=device) for _ in range(buffers)]
    return _slices(tokens, rows), _slices(vocabulary, columns), *room


def _slices(length: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def _view(room: Tensor, shape: torch.Size) -> Tensor:
    return room[: shape[0] * shape[1]].view(shape)


def _cast(ctx: Any, weight: Tensor, bias: Tensor | None, columns: slice) -> tuple[Tensor, Tensor | None]:
    return weight[columns].to(ctx.dtype), None if bias is None else bias[columns].to(ctx.dtype)


def _column(ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Each token's column in a tile, and whether the tile contains it (if not, the column is arbitrary)."""
    inside = (ids >= columns.start) & (ids < columns.stop)
    return torch.where(inside, ids - columns.start, 0), inside


def _tile_logits(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """The scaled logits of a tile, in float32, written to `room`."""
    out = _view(room, torch.Size((len(hidden), len(weight))))
    product = out if ctx.dtype == torch.float32 else hidden.new_empty(out.shape)
    # The matrix product applies the factor: no further pass, and the hidden state is not rounded.
    factor = ctx.scale if ctx.softcap is None else 1 / ctx.softcap
    torch.addmm(
        product if bias is None else bias, hidden, weight.T, beta=0 if bias is None else factor, alpha=factor, out=product
    )
    if product is not out:
        out.copy_(product)
    return out if ctx.softcap is None else out.tanh_().mul_(ctx.softcap * ctx.scale)


def _add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == into.dtype:
        into.addmm_(left, right)
    else:
        into += left @ right
