"""Attention along the paths of a prefix tree on CUDA: torch's flex attention with the tree as its block mask.

Not yet run on a GPU; `make gpu-check` compares its gradients. On a CPU flex attention has no backward pass.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from realrl.models.tree import PrefixTree


def block_mask_of(tree: PrefixTree, window: int | None, device: torch.device) -> BlockMask:
    """Which tokens of the row a token sees: those of its path, with a `window` the last of them alone."""
    ends = np.empty(len(tree), dtype=np.int64)
    for node in tree.nodes:
        ends[node.start : node.end] = node.last
    ends_S, positions_S = (torch.from_numpy(one).to(device) for one in (ends, tree.positions_S))

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        on_path = (key <= query) & (query < ends_S[key])
        return on_path if window is None else on_path & (positions_S[query] - positions_S[key] < window)

    return create_block_mask(sees, None, None, len(tree), len(tree), device=device, _compile=device.type == "cuda")


def flex_along_paths(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, mask: BlockMask, scale: float, softcap: float | None
) -> Tensor:
    """(1, heads, S, D) queries, (1, key heads, S, D) keys and values, (heads,) sinks or None → (1, S, heads, D)."""

    out, lse = _flex(query.device.type)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_lse=True,
    )
    if sinks is not None:
        # A sink is one more key, whose value is 0.
        out = out * torch.sigmoid(lse - sinks.float()[:, None])[..., None].to(out.dtype)
    return out.transpose(1, 2)


@functools.cache
def _capped(softcap: float) -> Any:
    """The score function of a soft cap; one for each cap, so that nothing is compiled twice."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@functools.cache
def _flex(kind: str) -> Any:
    """Compiled where its fast kernel is; it is compiled again for a new class of shapes only."""
    return torch.compile(flex_attention, dynamic=True) if kind == "cuda" else flex_attention
