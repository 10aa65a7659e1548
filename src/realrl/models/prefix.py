"""One row that holds the common prefix of several sequences once: levels of a prefix tree, and attention along its paths.

A level holds the nodes of one depth, right-padded: the common prefix of all prompts, then the rest of each prompt, then the
responses. A node's tokens continue those of its parent in the level before. A token attends to all nodes on the path to its
own node, and inside its node to the tokens up to itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# A level must save at least this many tokens, because it costs an attention call.
_WORTHWHILE = 8


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """Length of the common prefix, 0 if it is too short to be worth a level; each sequence keeps at least one own token."""
    if len(sequences) < 2:
        return 0
    # In sorted order, the first and the last sequence have the shortest common prefix.
    shared = min(len(os.path.commonprefix([min(sequences), max(sequences)])), min(map(len, sequences)) - 1)
    return shared if shared * (len(sequences) - 1) >= _WORTHWHILE else 0


@dataclass(frozen=True, slots=True)
class Level:
    """B nodes of one depth with at most L tokens each, right-padded; `parent_B` indexes the nodes of the level before."""

    ids_BL: Int[Tensor, "B L"]
    mask_BL: Bool[Tensor, "B L"]
    parent_B: Int[Tensor, " B"]


class RefusedAttention(Exception):
    """The model's attention is not plain causal attention through transformers' common interface."""


class Tree:
    """One row of S tokens: all levels, one after the other, without padding."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self.levels = levels
        starts_B = torch.zeros_like(levels[0].parent_B)
        ids, positions = [], []
        for index, level in enumerate(levels):
            if index:
                starts_B = (starts_B + levels[index - 1].mask_BL.sum(dim=1))[level.parent_B]
            ids.append(level.ids_BL[level.mask_BL])
            steps_L = torch.arange(level.ids_BL.shape[1], device=starts_B.device)
            positions.append((starts_B[:, None] + steps_L)[level.mask_BL])
        self.ids_S, self.positions_S = torch.cat(ids), torch.cat(positions)

    def ends(self, index: int) -> Int[Tensor, " B"]:
        """Positions in the row of each node's last token, for a level without empty nodes."""
        before = sum(int(level.mask_BL.sum()) for level in self.levels[:index])
        return before + self.levels[index].mask_BL.sum(dim=1).cumsum(0) - 1

    @contextmanager
    def attention(self, model: PreTrainedModel) -> Iterator[None]:
        """Context manager in which the model's attention follows the tree's paths."""
        config: Any = model.config.get_text_config()
        before = config._attn_implementation
        ALL_ATTENTION_FUNCTIONS.register(_NAME, _TreeAttention(self.levels))
        ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, lambda *args, **kwargs: None)
        config._attn_implementation = _NAME
        try:
            yield
        finally:
            config._attn_implementation = before


_NAME = "realrl_tree"


class _TreeAttention:
    """An attention function for transformers that works level by level."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self.shapes = [tuple(level.mask_BL.shape) for level in levels]
        # Positions of the row's tokens among the cells of all padded levels; None if there is no padding.
        real = torch.cat([level.mask_BL.flatten() for level in levels])
        self.cells_S = None if bool(real.all()) else real.nonzero()[:, 0]
        # For each level: the nodes of each level above on the paths to its nodes, and the mask over the keys of those paths.
        self.paths: list[list[Tensor]] = []
        self.masks: list[Tensor | None] = []
        for index, level in enumerate(levels):
            above = [nodes[level.parent_B] for nodes in self.paths[-1]] if index else []
            if index:
                above.append(level.parent_B)
            self.paths.append(above)
            self.masks.append(_mask(levels[:index], above, level) if index else None)
        self.biases: list[Tensor | None] = [None] * len(levels)

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        dropout: float = 0.0, scaling: float | None = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Query, key and value (1, heads, S, D) → (1, S, heads, D)."""
        if attention_mask is not None or any(
            kwargs.get(name) is not None for name in ("sliding_window", "softcap", "s_aux", "position_bias")
        ):
            raise RefusedAttention
        queries, keys, values = (self._by_level(states) for states in (query, key, value))
        settings: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": key.shape[1] != query.shape[1]}
        outs = [scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True, **settings)]
        if settings["enable_gqa"] and query.device.type != "cpu":
            # With a mask, only CPUs have a fast kernel for fewer key heads than query heads.
            repeats = query.shape[1] // key.shape[1]
            keys, values = ([states.repeat_interleave(repeats, dim=1) for states in side] for side in (keys, values))
            settings["enable_gqa"] = False
        for index, own in enumerate(queries[1:], start=1):
            if own.shape[2]:
                k, v = (self._along_paths(states, index) for states in (keys, values))
                outs.append(scaled_dot_product_attention(own, k, v, attn_mask=self._bias(index, own), **settings))
        flat = torch.cat([out.transpose(1, 2).flatten(0, 1).flatten(1) for out in outs])
        if self.cells_S is not None:
            flat = flat.index_select(0, self.cells_S)
        return flat.view(1, len(flat), query.shape[1], -1), None

    def _by_level(self, states: Tensor) -> list[Tensor]:
        """(1, heads, S, D) → for each level (B, heads, L, D), 0 on padding."""
        heads, width = states.shape[1], states.shape[3]
        sizes = [nodes * tokens for nodes, tokens in self.shapes]
        cells = states[0].transpose(0, 1).flatten(1)
        if self.cells_S is not None:
            cells = cells.new_zeros(sum(sizes), cells.shape[1]).index_copy(0, self.cells_S, cells)
        return [
            part.view(nodes, tokens, heads, width).transpose(1, 2)
            for part, (nodes, tokens) in zip(cells.split(sizes), self.shapes, strict=True)
        ]

    def _along_paths(self, states: list[Tensor], index: int) -> Tensor:
        """Keys or values along the path to each node of a level: (B, heads, path tokens, D)."""
        # index_select, because the backward pass of indexing sorts.
        above = [
            states[level].expand(len(nodes), -1, -1, -1) if len(states[level]) == 1 else states[level].index_select(0, nodes)
            for level, nodes in enumerate(self.paths[index])
        ]
        return torch.cat([*above, states[index]], dim=2)

    def _bias(self, index: int, query: Tensor) -> Tensor | None:
        """The level's mask as 0 or -inf to add to the attention scores, computed once for all layers."""
        mask, known = self.masks[index], self.biases[index]
        if mask is not None and (known is None or known.dtype != query.dtype):
            known = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, -torch.inf)
            self.biases[index] = known
        return known


def _mask(above: Sequence[Level], nodes: Sequence[Tensor], level: Level) -> Bool[Tensor, "B 1 L K"]:
    """Which keys on its path each token of a level sees; B = 1, one mask for all nodes, if all paths have the same length."""
    tokens = level.mask_BL.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=level.mask_BL.device).tril()
    whole = all(bool(one.mask_BL.all()) for one in above)
    paths = [one.mask_BL[:1] if whole else one.mask_BL[rows] for one, rows in zip(above, nodes, strict=True)]
    path = torch.cat(paths, dim=1)
    return torch.cat([path[:, None].expand(-1, tokens, -1), causal.expand(len(path), -1, -1)], dim=2)[:, None]
