"""`realrl grade`."""

from __future__ import annotations

from typing import Annotated

import typer

from realrl.cli.common import say
from realrl.system.terminal import printable


def grade(
    file: Annotated[
        str,
        typer.Argument(
            help="File of rows with `response` and `answer` (a text, or a list of accepted answers), and optionally `label`: "
            "whether the response is right."
        ),
    ],
    output: Annotated[str | None, typer.Option("-o", help="Write the rows with their verdicts to this JSONL file.")] = None,
    reward: Annotated[str, typer.Option(help='Verifier: a registered name, or a function as "module:name".')] = "math",
    compare: Annotated[str | None, typer.Option(help="Second grader: math-verify or deepscaler.")] = None,
    require_boxed: Annotated[bool, typer.Option("--require-boxed", help="Accept only an answer in a box.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Number of grading processes.")] = 2,
) -> None:
    """Grade responses against gold answers; with --compare, list the rows on which a second grader disagrees."""
    from realrl.config import RewardSection
    from realrl.rewards.grade_file import grade_file

    section = RewardSection(type=reward, require_boxed=require_boxed, workers=workers)
    report = grade_file(file, output, reward=section, compare=compare)
    for title, counts in (("status", report.statuses), ("stage", report.stages)):
        say(f"{title}: " + ", ".join(f"{name or '-'} {count}" for name, count in counts.most_common()))
    if any(isinstance(row.get("label"), bool) for row in report.rows):
        for name in ("status", *([f"status_{compare}"] if compare else [])):
            say(f"against the labels, {name}: {report.errors(name)}")
    if compare:
        say(f"disagreements with {compare}: {len(report.disagreements)} of {len(report.rows)}")
        for row in report.disagreements[:20]:
            answer, gold = (printable(str(row[key]))[:80] for key in ("extracted", "answer"))
            statuses = f"ours {row['status']}, {compare} {row[f'status_{compare}']}"
            say(f"  {statuses}: answer {answer} gold {gold} ({row['stage']}: {printable(row['reason'])})")
