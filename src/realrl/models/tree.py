"""Sequences of token ids as a prefix tree in one row: tokens that several sequences begin with stand there once.

The row is in depth-first order, so that a node's subtree is one range of places: the node's own tokens, then those of its
children. A token at place j is seen from place i if j <= i < end of the subtree of j.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Shared tokens that must be saved for a branch to be worth the attention calls that it costs.
WORTHWHILE = 8


@dataclass(frozen=True, slots=True)
class Node:
    """Tokens at the places from `start` to `end` (exclusive); the subtree reaches to `last` (exclusive).

    `depth`: position of the first token in its sequences. `level`: number of nodes above.
    """

    start: int
    end: int
    last: int
    depth: int
    level: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """The row: token ids and positions (S,), and its nodes in order of `start`.

    `places` has, for each sequence in the given order, the place of each of its tokens in the row.
    """

    ids_S: np.ndarray
    positions_S: np.ndarray
    nodes: list[Node]
    places: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids_S)


def prefix_tree(sequences: Sequence[np.ndarray], least: int = WORTHWHILE) -> PrefixTree:
    """Build the tree of integer sequences, each with at least one token, in time linear in their tokens.

    A common start is shared if that saves at least `least` tokens; otherwise each sequence has its own copy of it.
    """
    order, shared = sorted_prefixes(sequences)
    _copy_small_nodes(shared, least)
    sorted_rows = [sequences[index] for index in order]
    starts = np.cumsum([0, *(len(row) - common for row, common in zip(sorted_rows, shared, strict=True))])
    places: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(sequences)
    before = np.empty(0, dtype=np.int64)
    for rank, index in enumerate(order):
        before = np.concatenate([before[: shared[rank]], np.arange(starts[rank], starts[rank + 1])])
        places[index] = before
    return PrefixTree(
        ids_S=np.concatenate([row[common:] for row, common in zip(sorted_rows, shared, strict=True)]),
        positions_S=np.concatenate([np.arange(common, len(row)) for row, common in zip(sorted_rows, shared, strict=True)]),
        nodes=_nodes(shared, [len(row) for row in sorted_rows]),
        places=places,
    )


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all sequences share and are worth computing once; each keeps a token of its own at least."""
    if len(sequences) < 2:
        return 0
    # The first and the last in order differ the earliest.
    shared = min(len(os.path.commonprefix([min(sequences), max(sequences)])), min(map(len, sequences)) - 1)
    return shared if shared * (len(sequences) - 1) >= WORTHWHILE else 0


def sorted_prefixes(sequences: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
    """An order in which sequences with a common start are neighbours, and how many first tokens each has in common with the one
    before it (0 for the first)."""
    # Any order of bytes does, as long as equal starts stay together.
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].tobytes())
    neighbours = zip(order, order[1:], strict=False)
    return order, [0, *(common_start(sequences[one], sequences[other]) for one, other in neighbours)]


def common_start(one: np.ndarray, other: np.ndarray) -> int:
    """How many first tokens both sequences have in common."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length


def _copy_small_nodes(shared: list[int], least: int) -> None:
    """Lower `shared` where a node would save fewer than `least` tokens, so that its rows have copies of its tokens.

    The nodes are the intervals of rows whose entries are at least a depth; a stack walks over them from the inside out.
    """
    # (depth, first row, rows after the first whose common start ends at this depth)
    stack: list[tuple[int, int, list[int]]] = [(0, 0, [])]
    for row in range(1, len(shared) + 1):
        common, first, passed_on = (shared[row] if row < len(shared) else 0), row - 1, []
        while stack[-1][0] > common:
            depth, first, ends = stack.pop()
            above = max(common, stack[-1][0])
            if (depth - above) * (row - first - 1) < least:
                for one in ends:
                    shared[one] = above
                (passed_on if above > stack[-1][0] else stack[-1][2]).extend(ends)
        if stack[-1][0] < common:
            stack.append((common, first, passed_on))
        if row < len(shared):
            stack[-1][2].append(row)


def _nodes(shared: Sequence[int], lengths: Sequence[int]) -> list[Node]:
    """The nodes of the rows, in order of their places."""
    # Parts of the path to the newest row: [first position, position after the last, place of the first].
    path: list[tuple[int, int, int]] = []
    closed: list[tuple[int, int, int, int]] = []
    place = 0
    for common, length in [*zip(shared, lengths, strict=True), (0, 0)]:
        while path and path[-1][1] > common:
            first, after, start = path.pop()
            kept = max(common - first, 0)
            closed.append((start + kept, start + after - first, place, first + kept))
            if kept:
                path.append((first, common, start))
        if length > common:
            path.append((common, length, place))
            place += length - common
    nodes: list[Node] = []
    open_nodes: list[Node] = []
    for start, end, last, depth in sorted(closed):
        while open_nodes and open_nodes[-1].last <= start:
            open_nodes.pop()
        if open_nodes and nodes[-1] is open_nodes[-1] and nodes[-1].end == start and nodes[-1].last == last:
            # A sequence that only continues another one: no branch.
            open_nodes.pop()
            merged = nodes.pop()
            start, depth = merged.start, merged.depth
        node = Node(start, end, last, depth, len(open_nodes))
        nodes.append(node)
        open_nodes.append(node)
    return nodes
