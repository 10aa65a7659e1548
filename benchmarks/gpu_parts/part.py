"""One part of the check: where it runs, how long it may take, and what it found so far."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Part:
    """Runs on `device` ("cuda" or "cpu"), with `tiny` sizes or real ones, until `deadline` (time.time()), within `folder`.

    Every result is in the part's JSON file at once, so that a part that is killed loses only the measurement in progress.
    """

    name: str
    device: str
    tiny: bool
    folder: Path
    deadline: float
    results: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    summary: str = ""

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def time_for(self, what: str, seconds: float = 3) -> bool:
        """Whether so many seconds are left; `what` is written down as left out where they are not."""
        if self.left >= seconds:
            return True
        self.left_out.append(what)
        self.save()
        return False

    def add(self, name: str, result: Any) -> None:
        """Write down a result."""
        self.results[name] = result
        self.save()

    def save(self, **more: Any) -> None:
        """Write all results to the part's file."""
        path = self.folder / f"{self.name}.json"
        record = {"summary": self.summary, "left_out": self.left_out, "results": self.results, **more}
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(record, indent=1))
        temporary.replace(path)


def environment(**more: str) -> dict[str, str]:
    """Of commands that need neither a network nor an installed realrl."""
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**own, **os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **more}
