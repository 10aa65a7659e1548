"""Attention along the paths of a prefix tree as a list of parts: blocks of queries, each with the block of keys that they see.

A token sees the tokens of its own node up to itself, and all tokens of the nodes above. So the parts are every node with
itself, and the keys of every inner node with the queries below it: each key is read once for all that see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from realrl.models.tree import PrefixTree

# Padding that one part may have, as a share of its scores: less padding means more parts.
_PADDING = 0.25


class Places:
    """Places in the row of B blocks, padded on the right to L places each.

    `take` reads the places; `put` and `add` write to them, without the padding.
    """

    def __init__(self, blocks: Sequence[np.ndarray], device: torch.device) -> None:
        longest = max(map(len, blocks))
        self.shape = len(blocks), longest
        real_BL = np.arange(longest) < np.array([len(block) for block in blocks])[:, None]
        places = np.concatenate(blocks)
        self._range: slice | None = None
        if len(blocks) == 1 and places[-1] - places[0] == longest - 1:
            self._range = slice(int(places[0]), int(places[-1]) + 1)
        padded_BL = np.zeros(real_BL.shape, dtype=np.int64)
        padded_BL[real_BL] = places
        self.padded_BL, self.real_BL = padded_BL, real_BL
        self._places = torch.from_numpy(places).to(device)
        self._padded = torch.from_numpy(padded_BL.ravel()).to(device)
        self._real = self._padding = None
        if not real_BL.all():
            self._real, self._padding = (torch.from_numpy(np.flatnonzero(one)).to(device) for one in (real_BL, ~real_BL))

    def take(self, states: Tensor, padding: float | None = None) -> Tensor:
        """(S, …) → (B, L, …); padding holds `padding`, or any finite values."""
        if self._range is not None:
            return states[self._range][None]
        found = states.index_select(0, self._padded)
        if padding is not None and self._padding is not None:
            found.index_fill_(0, self._padding, padding)
        return found.view(*self.shape, *states.shape[1:])

    def put(self, row: Tensor, values: Tensor) -> None:
        """Set the places of `row` (S, …) to the values (B, L, …)."""
        if self._range is not None:
            row[self._range] = values[0]
        else:
            row.index_copy_(0, self._places, self._without_padding(values))

    def add(self, row: Tensor, values: Tensor) -> None:
        """Add the values (B, L, …) to the places of `row` (S, …)."""
        if self._range is not None:
            row[self._range] += values[0]
        else:
            row.index_add_(0, self._places, self._without_padding(values).to(row.dtype))

    def _without_padding(self, values: Tensor) -> Tensor:
        flat = values.flatten(0, 1)
        return flat if self._real is None else flat.index_select(0, self._real)


@dataclass(frozen=True, slots=True)
class Part:
    """B blocks of L queries, and for each K keys.

    With `causal` a query sees the keys up to its own place in the block, otherwise all of them; `mask_BLK` replaces both if a
    window or padding hides keys. `first`: no part before it has these queries.
    """

    queries: Places
    keys: Places
    causal: bool
    mask_BLK: Tensor | None
    first: bool
    _biases: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as numbers to add to the scores (B, 1, L, K); made once for all layers and both passes."""
        if self.mask_BLK is None:
            return None
        if dtype not in self._biases:
            seen = self.mask_BLK[:, None]
            empty = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._biases[dtype] = empty.masked_fill_(~seen, -torch.inf)
        return self._biases[dtype]


class _Block(NamedTuple):
    queries: np.ndarray
    keys: np.ndarray


def parts_of(tree: PrefixTree, window: int | None, device: torch.device) -> list[Part]:
    """The parts, those of the nodes themselves first. With a `window` a token sees that many tokens of its path, itself
    included."""
    positions = tree.positions_S
    places = [np.arange(node.start, node.end) for node in tree.nodes]
    parts = [_part(blocks, positions, window, device, own=True) for blocks in _alike([_Block(one, one) for one in places])]
    # Nodes of one level have different queries below them, so that a part may hold several nodes.
    for level in range(max(node.level for node in tree.nodes)):
        below = []
        for node, keys in zip(tree.nodes, places, strict=True):
            if node.level == level and node.last > node.end:
                queries = np.arange(node.end, node.last)
                if window is not None:
                    queries = queries[positions[queries] < positions[keys[-1]] + window]
                if len(queries):
                    below.append(_Block(queries, keys))
        parts += [_part(blocks, positions, window, device, own=False) for blocks in _alike(below)]
    return parts


def _alike(blocks: Sequence[_Block]) -> Iterator[list[_Block]]:
    """The blocks in sets of similar shape."""
    found: list[_Block] = []
    real = widest = 0
    for block in sorted(blocks, key=lambda block: (len(block.keys), len(block.queries))):
        size = len(block.keys) * len(block.queries)
        widest = max(widest, len(block.queries))
        if found and (len(found) + 1) * widest * len(block.keys) > (1 + _PADDING) * (real + size):
            yield found
            found, real, widest = [], 0, len(block.queries)
        found.append(block)
        real += size
    if found:
        yield found


def _part(blocks: Sequence[_Block], positions: np.ndarray, window: int | None, device: torch.device, *, own: bool) -> Part:
    queries, keys = Places([block.queries for block in blocks], device), Places([block.keys for block in blocks], device)
    mask = None
    # The padding of a node's own keys is where a causal query does not look.
    if window is not None or not (own or keys.real_BL.all()):
        hidden_BLK = np.zeros((*queries.shape, keys.shape[1]), dtype=bool)
        if window is not None:
            hidden_BLK |= positions[queries.padded_BL][:, :, None] - positions[keys.padded_BL][:, None, :] >= window
        if not own:
            hidden_BLK |= ~keys.real_BL[:, None, :]
        # Padded queries see everything: a softmax over nothing is not a number.
        hidden_BLK &= queries.real_BL[:, :, None]
        if hidden_BLK.any():
            seen_BLK = ~hidden_BLK & np.tri(*hidden_BLK.shape[1:], dtype=bool) if own else ~hidden_BLK
            mask = torch.from_numpy(seen_BLK).to(device)
    return Part(queries, keys, own and mask is None, mask, own)
