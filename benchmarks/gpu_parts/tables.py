"""The check's results as Markdown, ready for docs/performance.md."""

from __future__ import annotations

from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """One line of each part, then the tables of what was measured."""
    parts = report["parts"]
    lines = [f"Device check of {report['date']}: {report['seconds']:.0f} s of a budget of {report['budget_s']:.0f} s.", ""]
    lines += table(["part", "status", "seconds", "what was found"], [
        [name, part["status"], f"{part['seconds']:.0f}", part["summary"]] for name, part in parts.items()
    ])  # fmt: skip
    sizes = {name: parts[name]["results"] for name in ("0.5b", "1.5b") if name in parts}
    header = ["model", "response tokens", "layout", "checkpointing", "tokens of a micro-batch", "tokens/s", "MFU", "peak GiB"]
    lines += titled("Training, one group of 8", table(header, [
        [name, row["response_tokens"], row["layout"], "yes" if row["checkpointing"] else "no", row["micro_batch_tokens"],
         number(row["tokens_per_s"]), share(row["mfu"]), row["peak_gib"] or ""]
        for name, found in sizes.items() for row in found.get("training", [])
    ]))  # fmt: skip
    lines += titled("Sampling", table(["model", "context", "rows", "tokens/s", "ms a token of all rows", "peak GiB"], [
        [name, row["context"], row["rows"], number(row["tokens_per_s"]), row["ms_per_token"] or "", row["peak_gib"] or ""]
        for name, found in sizes.items() for row in found.get("sampling", [])
    ]))  # fmt: skip
    lines += titled("The longest response whose gradient fits", table(["model", "layout", "tokens", "bounded by"], [
        [name, way, number(row["tokens"]), row["bounded_by"]]
        for name, found in sizes.items() for way, row in found.get("longest", {}).items()
    ]))  # fmt: skip
    worst = parts.get("tests", {}).get("results", {}).get("worst_relative_error", {})
    lines += titled("Worst relative error against float64 on the CPU", table(["what", "error"], [
        [name, f"{error:.1e}"] for name, error in sorted(worst.items())
    ]))  # fmt: skip
    notes = [f"- {name} left out: {what}" for name, part in parts.items() for what in part["left_out"]]
    notes += [f"- {name} failed: {last_line(part['error'])}" for name, part in parts.items() if part["status"] == "failed"]
    lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


def table(header: list[str], rows: list[list[Any]]) -> list[str]:
    """Lines of a Markdown table; none for no rows."""
    if not rows:
        return []
    return [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]


def titled(title: str, lines: list[str]) -> list[str]:
    return ["", f"{title}:", "", *lines] if lines else []


def number(value: float | None) -> str:
    return "out of memory" if value is None else f"{value:,}"


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def last_line(text: str) -> str:
    """Of a traceback: the exception."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
