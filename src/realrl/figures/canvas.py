"""The style of all figures, and their three files: PNG, SVG, and the plotted data as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for the common kinds of colour blindness; the two labels also have different line styles.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RIGHT, WRONG = COLOURS[0], COLOURS[1]
_DASHES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    # The same data give the same file.
    "svg.hashsalt": "realrl",
}


def style() -> AbstractContextManager[None]:
    """A context manager with the style of all figures, for drawing and saving."""
    return mpl.rc_context(_STYLE)


def plain(text: str) -> str:
    """`text` as a literal label: a `$` from a recipe must not start a formula, which might be invalid."""
    return text.replace("$", r"\$")


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of line number `index`; the dashes change when all colours are used."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": _DASHES[index // len(COLOURS) % len(_DASHES)]}


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with rows × columns axes, each of `size` inches (width, height), listed in reading order."""
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def save(figure: Figure, data: Sequence[Mapping[str, Any]], folder: Path, name: str) -> list[Path]:
    """Write NAME.png, NAME.svg and NAME.csv (one row for each mapping in `data`); returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    figure.savefig(paths[0], dpi=160)
    figure.savefig(paths[1], metadata={"Date": None})
    with paths[2].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(data[0]) if data else [])
        writer.writeheader()
        writer.writerows(_written(row.items()) for row in data)
    return paths


def _written(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {key: f"{value:.7g}" if isinstance(value, float) else value for key, value in items}
