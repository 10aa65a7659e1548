"""The tables of an evaluation, in Markdown and LaTeX: one like the paper's Table 1, and one with every figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from realrl.eval.benchmarks import COLUMNS, NOTES, PAPER_ROWS, PAPER_SOURCE, paper_column
from realrl.eval.intervals import interval
from realrl.eval.runner import EvalResult


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text under a header. The first column is aligned left, the others right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """A Markdown table with aligned columns, to be read on a terminal, too."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

        def line(row: Sequence[str]) -> str:
            first, *rest = (
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            return "| " + " | ".join([first, *rest]) + " |"

        rule = "|" + "|".join("-" * (width + 1) + (":" if place else "-") for place, width in enumerate(widths)) + "|"
        return "\n".join([line(cells[0]), rule, *(line(row) for row in cells[1:])]) + "\n"

    def latex(self) -> str:
        """A tabular environment with booktabs rules."""

        def line(row: Sequence[str]) -> str:
            return " & ".join(map(_latex, row)) + r" \\"

        body = "\n".join(line(row) for row in self.rows)
        columns = "l" + "r" * (len(self.header) - 1)
        head = f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(self.header)}\n\\midrule\n"
        return f"{head}{body}\n\\bottomrule\n\\end{{tabular}}\n"


_LATEX = {"±": r"$\pm$", "−": "$-$", "→": r"$\to$", "≥": r"$\geq$", "†": r"$\dagger$", "\\": r"\textbackslash{}"} | {
    char: "\\" + char for char in "_&%#${}"
}


def _latex(cell: str) -> str:
    return "".join(_LATEX.get(char, char) for char in cell)


def average(results: Mapping[str, EvalResult]) -> dict[str, Any]:
    """The mean of the benchmarks' Pass@1 (the paper's Avg.), its standard error and 95 % interval."""
    errors = [result.standard_error for result in results.values()]
    low, high = interval([result.problem_means() for result in results.values()])
    return {
        "accuracy": sum(result.accuracy for result in results.values()) / len(results),
        "standard_error": math.sqrt(sum(error**2 for error in errors)) / len(results),
        "interval": (low, high),
    }


def summary_table(model: str, results: Mapping[str, EvalResult], show_paper: bool) -> Table:
    """One row for the model, Pass@1 ± standard error, and with `show_paper` the paper's rows below it, marked as such."""
    ours = [f"{result.accuracy:.3f} ± {result.standard_error:.3f}" for result in results.values()]
    header, rows = ["model", *results], [[model, *ours]]
    if len(results) > 1:
        mean = average(results)
        header.append("Avg.")
        rows[0].append(f"{mean['accuracy']:.3f} ± {mean['standard_error']:.3f}")
    if show_paper:
        rows += _paper_rows(list(results))
    return Table(header, rows)


def _paper_rows(benchmarks: Sequence[str]) -> list[list[str]]:
    columns = list(COLUMNS)
    found = [paper_column(name) for name in benchmarks]
    whole = set(found) == set(columns)
    rows = []
    for row in PAPER_ROWS:
        values = dict(zip([*columns, "Avg."], row.values, strict=True))
        wanted = [*found, *(["Avg." if whole else None] if len(benchmarks) > 1 else [])]
        cells = ["-" if column is None or values[column] is None else f"{values[column]:.3f}" for column in wanted]
        rows.append([f"paper, {row.table.split(',')[0]}: {row.name}{'*' if row.cited else ''}", *cells])
    return rows


def details_table(results: Mapping[str, EvalResult]) -> Table:
    """Every figure of each benchmark."""
    header = ["benchmark", "problems", "samples", "Pass@1", "95 % interval", "SE problems", "SE samples", "pass@k", "majority"]
    header += ["truncated", "no answer", "missed", "grader error", "tokens"]
    rows = []
    for name, r in results.items():
        largest = max(r.pass_at)
        rows.append(
            [
                name,
                str(r.problems),
                str(r.samples_each),
                f"{r.accuracy:.4f} ± {r.standard_error:.4f}",
                f"{r.interval[0]:.4f} to {r.interval[1]:.4f}",
                "-" if r.standard_error_problems is None else f"{r.standard_error_problems:.4f}",
                "-" if r.standard_error_samples is None else f"{r.standard_error_samples:.4f}",
                f"{r.pass_at[largest]:.4f} (k = {largest})",
                f"{r.majority:.4f}",
                f"{r.truncated_share:.3f}",
                f"{r.no_answer_share:.3f}",
                f"{r.answer_missed_share:.3f}",
                f"{r.grader_error_share:.3f}",
                "-" if r.mean_length is None else f"{r.mean_length:.1f}",
            ]
        )
    return Table(header, rows)


def notes(benchmarks: Sequence[str], show_paper: bool) -> list[str]:
    """What a reader must know to compare these figures with others."""
    lines = [NOTES[name] for name in benchmarks if name in NOTES]
    if show_paper:
        tables = dict.fromkeys(row.table for row in PAPER_ROWS)
        lines.append(f"Rows marked paper are the paper's, not ours: {'; '.join(tables)} ({PAPER_SOURCE}).")
        lines.append("* the paper takes these from original reports or from Li et al. (2025).")
    return lines
