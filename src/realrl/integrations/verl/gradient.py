"""Mini-batches of whole groups; free of verl."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def plan_mini_batches(uids: Sequence[str], groups: int, shuffle: np.random.Generator | None = None) -> list[list[int]]:
    """Rows of each mini-batch: `groups` whole groups in the order of their first rows, or shuffled; the last may be smaller.

    `uids` names the group of each row. The rows of a group may be anywhere, and groups may differ in size.
    """
    rows: dict[str, list[int]] = {}
    for row, uid in enumerate(uids):
        rows.setdefault(uid, []).append(row)
    order = list(rows)
    if shuffle is not None:
        shuffle.shuffle(order)
    return [[row for uid in order[first : first + groups] for row in rows[uid]] for first in range(0, len(order), groups)]
