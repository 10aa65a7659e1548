"""The pictures in a report: gradient weights of its objectives (Figure 1), and recipes side by side (Figure 5)."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from realrl.errors import RealrlError
from realrl.figures.dynamics import figure_5
from realrl.figures.weights import figure_1_of
from realrl.rundir.runs import RunGroup


def pictures_of(groups: Sequence[RunGroup]) -> list[dict[str, str]]:
    """`section` of the page, `title`, `about` and `svg` (base64) of each picture for which the runs have data."""
    if not groups:
        return []
    pictures = []
    weights = _weights(json.dumps({group.label: _objective(group) for group in groups}, default=str))
    if weights:
        about = "by autograd: one response moves in a group with four right and four wrong responses; the paper's Figure 1"
        pictures.append({"section": "distributions", "title": "Gradient weight", "about": about, "svg": weights})
    if len(groups) > 1:
        with tempfile.TemporaryDirectory() as folder:
            drawn = figure_5(groups, Path(folder))
            if not isinstance(drawn, str):
                about = "each recipe over its seeds; the paper's Figure 5"
                pictures.append({"section": "evaluation", "title": "Recipes side by side", "about": about, "svg": _svg(drawn)})
    return pictures


@lru_cache(maxsize=8)
def _weights(objectives: str) -> str | None:
    """Figure 1 for the objectives in a JSON object; None if this version of realrl does not know them."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _svg(figure_1_of(json.loads(objectives), Path(folder)))
        except (ValueError, TypeError, KeyError, ArithmeticError, RuntimeError, RealrlError):
            return None


def _objective(group: RunGroup) -> dict[str, Any]:
    keys = {key.removeprefix("objective."): value for key, value in group.config.items() if key.startswith("objective.")}
    return {key: value for key, value in keys.items() if not key.startswith("kl.")}


def _svg(paths: Sequence[Path]) -> str:
    return base64.b64encode(next(path for path in paths if path.suffix == ".svg").read_bytes()).decode()
