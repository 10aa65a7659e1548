"""metrics.jsonl, the records of a run: the one writer and the one reader."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

RecordKind = Literal["round", "evaluation"]


class MetricsFile:
    """The writer: one JSON object a line, each flushed at once. On resume the records after the checkpoint are cut off.

    `kept` are the records before it. With `evaluation_due` the evaluation of `resume_step` is cut off, too. Raises OSError.
    """

    def __init__(self, path: Path, resume_step: int = 0, *, evaluation_due: bool = False) -> None:
        self.kept: list[dict[str, Any]] = []
        if path.exists():
            end = 0
            for line in _lines(path):
                record = line.record
                if record is None or not line.whole or record["step"] > resume_step:
                    continue
                if record["step"] < resume_step or record["kind"] == "round" or not evaluation_due:
                    self.kept.append(record)
                    end = line.end
            # Truncated in place: this needs no space, and the kept records are in the file at every moment.
            os.truncate(path, end)
        self._file = path.open("ab")
        self._began = time.monotonic()

    def write(self, step: int, kind: RecordKind, metrics: dict[str, float]) -> None:
        """Append the record of a round or of an evaluation; `step` counts the finished rounds."""
        # "time" is only a label, because the wall clock may jump.
        clocks = {"time": time.time(), "time/run_s": time.monotonic() - self._began}
        self._file.write((json.dumps({"step": step, "kind": kind, **clocks, **metrics}) + "\n").encode())
        self._file.flush()

    def sync(self) -> None:
        """Have everything so far on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        # Write errors were already raised.
        with contextlib.suppress(OSError):
            self._file.close()


def read_records(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of metrics.jsonl, and the numbers of the lines that are no record; nothing without the file.

    Every record has an integer `step` and a `kind`, "round" or "evaluation". The last line is never counted as broken: a crash
    may have torn it, or it is still being written. Raises OSError.
    """
    if not path.is_file():
        return [], []
    lines = list(_lines(path))
    records = [line.record for line in lines if line.record is not None]
    return records, [line.number for line in lines[:-1] if line.record is None]


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The records of rounds, in order; none without the file. Raises OSError."""
    return [record for record in read_records(path)[0] if record["kind"] == "round"]


def last_round(path: Path) -> int:
    """The number of the last recorded round; 0 without any. Raises OSError."""
    return max((record["step"] for record in read_rounds(path)), default=0)


class _Line(NamedTuple):
    """A line of the file: `end` is the byte after it; `whole` tells whether its line break is there."""

    number: int
    end: int
    whole: bool
    record: dict[str, Any] | None


def _lines(path: Path) -> Iterator[_Line]:
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            end += len(line)
            yield _Line(number, end, line.endswith(b"\n"), _record(line))


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line with its kind; None for a line that is no record."""
    try:
        record = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int) or abs(record["step"]) >= 2**53:
        return None
    if record.get("kind") not in ("round", "evaluation"):
        # Runs of earlier versions wrote no kind; every round then had a reward, and no evaluation had one.
        record["kind"] = "round" if "reward/mean" in record else "evaluation"
    return record


def is_accuracy(name: str) -> bool:
    """Whether a metric is a held-out accuracy: `eval/SET/MODE/accuracy`."""
    return name.startswith("eval/") and name.endswith("/accuracy") and name.count("/") >= 3
