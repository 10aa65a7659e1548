"""Rollouts as Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realrl.system.files import replacing


def write_rollouts(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Save rows as zstd Parquet, whole or not at all; the columns are those of all rows, absent values are null."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: _column([row.get(name) for row in rows]) for name in names})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except UnicodeEncodeError:
        # A lone half of a surrogate pair, which no UTF-8 file can hold.
        return pa.array([v.encode("utf-8", "replace").decode("utf-8") if isinstance(v, str) else v for v in values])
