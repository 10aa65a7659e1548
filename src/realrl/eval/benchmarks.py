"""The paper's six benchmarks, and the paper's own results on them."""

from __future__ import annotations

from dataclasses import dataclass

# Column of the paper's tables → our sets for it; the first is the set that the paper's code evaluates.
COLUMNS: dict[str, tuple[str, ...]] = {
    "AIME24": ("aime24",),
    "AIME25": ("aime25",),
    "MATH-500": ("math500",),
    "AMC23": ("amc22_23", "amc23"),
    "Minerva": ("minerva_deepscaler", "minerva"),
    "OlympiadBench": ("olympiadbench",),
}
NOTES = {
    "amc23": "amc23: the 40 problems of 2023. As AMC23 the paper's code evaluates 83 problems of 2022 and 2023, our amc22_23.",
    "amc22_23": "amc22_23: 83 problems of 2022 and 2023, the set that the paper's code evaluates as AMC23.",
    "minerva": "minerva: graded against the official answers. The paper's code uses DeepScaleR's answer lists, our "
    "minerva_deepscaler.",
    "minerva_deepscaler": "minerva_deepscaler: graded against DeepScaleR's answer lists, as the paper's code does; in 40 of "
    "272 problems none of them is the official answer.",
}


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One row of a table of the paper: Pass@1 in the order of `COLUMNS`, then the average.

    `cited`: the paper takes it from original reports or from Li et al. (2025).
    """

    table: str
    name: str
    values: tuple[float | None, ...]
    cited: bool = False


_ONE = "Table 1, DeepSeek-R1-Distill-Qwen-1.5B on DeepScaleR"
_TWO = "Table 2, DeepSeek-R1-Distill-Qwen-7B on DeepScaleR"
PAPER_SOURCE = "arXiv 2602.05630, as shown in the authors' repository (Red-RL/REAL, assets/results.png)"
# Read from that picture; its * is `cited`.
PAPER_ROWS = (
    PaperRow(_ONE, "OpenAI-o1-Preview", (0.400, None, 0.814, None, None, None, None), cited=True),
    PaperRow(_ONE, "DS-Distill-Qwen-1.5B", (0.181, 0.215, 0.758, 0.515, 0.237, 0.353, 0.376), cited=True),
    PaperRow(_ONE, "DSR-1.5B-Preview", (0.358, 0.258, 0.860, 0.679, 0.297, 0.473, 0.488), cited=True),
    PaperRow(_ONE, "GRPO", (0.235, 0.229, 0.824, 0.600, 0.264, 0.435, 0.431)),
    PaperRow(_ONE, "DAPO", (0.298, 0.215, 0.837, 0.663, 0.295, 0.448, 0.459)),
    PaperRow(_ONE, "TRPA", (0.354, 0.235, 0.835, 0.653, 0.283, 0.458, 0.470), cited=True),
    PaperRow(_ONE, "GSPO", (0.377, 0.296, 0.877, 0.730, 0.326, 0.506, 0.519)),
    PaperRow(_ONE, "REAL", (0.406, 0.321, 0.877, 0.734, 0.310, 0.508, 0.526)),
    PaperRow(_TWO, "DS-Distill-Qwen-7B", (0.402, 0.292, 0.873, 0.688, 0.355, 0.471, 0.513), cited=True),
    PaperRow(_TWO, "GRPO", (0.498, 0.394, 0.916, 0.807, 0.381, 0.555, 0.592), cited=True),
    PaperRow(_TWO, "DAPO", (0.454, 0.335, 0.907, 0.799, 0.388, 0.535, 0.570), cited=True),
    PaperRow(_TWO, "TRPA", (0.510, 0.367, 0.898, 0.779, 0.379, 0.534, 0.578), cited=True),
    PaperRow(_TWO, "GSPO", (0.525, 0.396, 0.926, 0.852, 0.402, 0.588, 0.615)),
    PaperRow(_TWO, "REAL", (0.571, 0.433, 0.929, 0.858, 0.402, 0.602, 0.632)),
)


def paper_column(benchmark: str) -> str | None:
    """The column of the paper's tables for `benchmark`; None if there is none."""
    return next((column for column, names in COLUMNS.items() if benchmark in names), None)
