"""One row in which tokens that several sequences begin with stand once: levels of a prefix tree, and attention along its paths.

A level holds nodes of one depth, right-padded. Each node's tokens go on from those of its parent, a node of the level before:
what all prompts have in common, then the rest of each prompt, then the responses. A token attends to the nodes on the path to
its own, and within its node to the tokens up to itself.
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

# Tokens that a level has to save: less than that its own attention call costs.
_WORTHWHILE = 8


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all sequences share and are worth computing once; each keeps a token of its own at least."""
    if len(sequences) < 2:
        return 0
    # The first and the last in order differ the earliest.
    shared = min(len(os.path.commonprefix([min(sequences), max(sequences)])), min(map(len, sequences)) - 1)
    return shared if shared * (len(sequences) - 1) >= _WORTHWHILE else 0


@dataclass(frozen=True, slots=True)
class Level:
    """Nodes B of one depth with at most L tokens each, padded on the right; `parent_B` are nodes of the level before."""

    ids_BL: Int[Tensor, "B L"]
    mask_BL: Bool[Tensor, "B L"]
    parent_B: Int[Tensor, " B"]


class RefusedAttention(Exception):
    """A model's attention is not plain causal attention through the common interface."""


class Tree:
    """The row of all levels, one after the other, without padding; S counts its tokens."""

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
        """Places in the row of the last token of each node of a level, whose nodes all have tokens."""
        before = sum(int(level.mask_BL.sum()) for level in self.levels[:index])
        return before + self.levels[index].mask_BL.sum(dim=1).cumsum(0) - 1

    @contextmanager
    def attention(self, model: PreTrainedModel) -> Iterator[None]:
        """The model's attention follows the tree's paths within."""
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
    """transformers' interface to attention, level by level."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self.shapes = [tuple(level.mask_BL.shape) for level in levels]
        # Where the tokens of the row lie among the cells of all padded levels; None: nothing is padded.
        real = torch.cat([level.mask_BL.flatten() for level in levels])
        self.cells_S = None if bool(real.all()) else real.nonzero()[:, 0]
        # For each level the nodes of every level on the paths to its own nodes, and the mask over the keys of those paths.
        self.paths: list[list[Tensor]] = []
        self.masks: list[Tensor | None] = []
        for index, level in enumerate(levels):
            above = [nodes[level.parent_B] for nodes in self.paths[-1]] if index else []
            if index:
                above.append(level.parent_B)
            # The path from a level ends with the level itself, whose nodes are their own.
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
            # With a mask other devices have no fast kernel for fewer key heads.
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
        """Keys or values of the path to each node of a level: (B, heads, tokens of the path, D)."""
        # Not by indexing, whose backward pass sorts.
        above = [
            states[level].expand(len(nodes), -1, -1, -1) if len(states[level]) == 1 else states[level].index_select(0, nodes)
            for level, nodes in enumerate(self.paths[index])
        ]
        return torch.cat([*above, states[index]], dim=2)

    def _bias(self, index: int, query: Tensor) -> Tensor | None:
        """The level's mask as numbers to add to the scores, made once for all layers."""
        mask, known = self.masks[index], self.biases[index]
        if mask is not None and (known is None or known.dtype != query.dtype):
            known = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, -torch.inf)
            self.biases[index] = known
        return known


def _mask(above: Sequence[Level], nodes: Sequence[Tensor], level: Level) -> Bool[Tensor, "B 1 L K"]:
    """Which keys of the path each token of a level sees; one for all nodes (B = 1) where their paths are of one length."""
    tokens = level.mask_BL.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=level.mask_BL.device).tril()
    whole = all(bool(one.mask_BL.all()) for one in above)
    paths = [one.mask_BL[:1] if whole else one.mask_BL[rows] for one, rows in zip(above, nodes, strict=True)]
    path = torch.cat(paths, dim=1)
    return torch.cat([path[:, None].expand(-1, tokens, -1), causal.expand(len(path), -1, -1)], dim=2)[:, None]
