"""metrics.jsonl: the records of a run."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from realrl.rundir.alarms import STEP_RECORD


class MetricsFile:
    """metrics.jsonl: one JSON object a line, written through at once; on resume the lines after the checkpoint go.

    `kept` are the records before. With `evaluation_due` the evaluation of `resume_step` goes, too. Raises OSError.
    """

    def __init__(self, path: Path, resume_step: int = 0, *, evaluation_due: bool = False) -> None:
        self.kept: list[dict[str, Any]] = []
        end = position = 0
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    position += len(line)
                    record = _record(line)
                    if record is None or record["step"] > resume_step:
                        continue
                    if record["step"] < resume_step or STEP_RECORD in record or not evaluation_due:
                        self.kept.append(record)
                        end = position
            # Cut where it lies: that takes no space, and at no moment less than the records before is there.
            os.truncate(path, end)
        self._file = path.open("ab")
        self._began = time.monotonic()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        # The first is a label: the clock on the wall may jump.
        clocks = {"time": time.time(), "time/run_s": time.monotonic() - self._began}
        self._file.write((json.dumps({"step": step, **clocks, **metrics}) + "\n").encode())
        self._file.flush()

    def sync(self) -> None:
        """Have everything so far on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        # What could not be written was an error then.
        with contextlib.suppress(OSError):
            self._file.close()


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a whole line; None for one torn by a crash."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def step_records(path: Path) -> list[dict[str, Any]]:
    """The records of sampling rounds in metrics.jsonl, in order; none without the file. Raises OSError."""
    if not path.exists():
        return []
    with path.open("rb") as lines:
        return [record for line in lines if (record := _record(line)) and STEP_RECORD in record]


def last_step(path: Path) -> int:
    """The last sampling round that metrics.jsonl records; 0 without any. Raises OSError."""
    return max((record["step"] for record in step_records(path)), default=0)
