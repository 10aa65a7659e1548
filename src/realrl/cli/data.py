"""`realrl data list`, `realrl data show` and `realrl data check`."""

from __future__ import annotations

from typing import Annotated

import typer

from realrl.cli.common import say
from realrl.system.terminal import printable

app = typer.Typer(no_args_is_help=True)


@app.command(name="list")
def list_data() -> None:
    """The named sets and generated tasks, and where each set is read from."""
    from realrl.data.datasets import list_sets
    from realrl.data.tasks import TASKS

    for name, local, hub in list_sets():
        say(f"{name:20}{local or f'not found locally; hub: {hub}'}")
    say(f"generated: {', '.join(TASKS)}")
    say("amc23: the 40 problems of 2023; amc22_23: 83 of 2022 and 2023, which the paper's code evaluates under the name AMC23")


@app.command(name="show")
def show_data(
    name: Annotated[str, typer.Argument(help="A named set, a generated task, a file, or a hub name.")],
    count: Annotated[int, typer.Option(min=1, help="Number of problems to show.")] = 3,
    skip: Annotated[int, typer.Option(min=0, help="Number of problems to skip first.")] = 0,
) -> None:
    """Some problems of a data set with their gold answers."""
    from realrl.data import load_problems

    loaded = load_problems(name)
    say(f"{name}: {len(loaded.problems)} problems, {loaded.bad_rows} bad rows")
    for line in loaded.warnings():
        say(printable(line))
    for index in range(skip, min(skip + count, len(loaded.problems))):
        problem = loaded.problems[index]
        say(f"\n{printable(problem.id)}\n  {printable(problem.problem)}\n  gold: {printable(' | '.join(problem.golds))}")


@app.command(name="check")
def check_data(
    name: Annotated[str, typer.Argument(help="A named set, a file, or a hub name.")],
    reward: Annotated[str, typer.Option(help="Verifier that must accept each gold answer.")] = "math",
    against: Annotated[
        str, typer.Option(help="Comma-separated evaluation sets; their problems are searched for in the data.")
    ] = "",
    shown: Annotated[int, typer.Option(min=0, help="Maximum rows listed of each kind.")] = 50,
) -> None:
    """Grade every gold answer against itself; count repeated problems and overlaps with evaluation sets.

    Exit status 1 if more than 1 gold answer in 200 fails.
    """
    from realrl.config import RewardSection
    from realrl.data.cleaning import count_overlap, deduplicate, find_overlap, load_finite
    from realrl.rewards.golds import check_golds

    loaded = load_finite(name)
    others = {other: load_finite(other).problems for part in against.split(",") if (other := part.strip())}
    problems = [loaded.problems[index] for index in range(len(loaded.problems))]
    report = check_golds(problems, RewardSection(type=reward))
    passed = report.total - len(report.failures)
    say(f"{name}: {passed} of {report.total} golds pass ({passed / report.total:.2%}); {loaded.bad_rows} bad rows left out")
    for line in loaded.warnings():
        say(printable(line))
    for problem, verdict in report.failures[:shown]:
        gold = printable(problem.answer)[:100]
        say(f"  fails: {printable(problem.id)} gold {gold}: {verdict.status}, {printable(verdict.reason)}")
    say(f"compared as text only by the parser, else by computer algebra: {len(report.text_only)}")
    for problem in report.text_only[:shown]:
        say(f"  {printable(problem.id)} gold {printable(problem.answer)[:100]}")
    found = deduplicate(problems)
    conflicts = f"{found.conflicting} of {len(found.conflicts)} problems"
    say(f"repeated problems: {found.repeated}; rows whose golds conflict: {conflicts}")
    for group in found.conflicts[:shown]:
        say("  " + "; ".join(f"{printable(problem.id)} gold {printable(problem.answer)[:40]}" for problem in group))
    for other, evaluated in others.items():
        pairs = find_overlap(problems, evaluated)
        say(f"overlap with {other}: {count_overlap(pairs)}")
        for pair in pairs[:shown]:
            say(f"  {printable(pair.train.id)} holds {pair.containment:.0%} of {printable(pair.evaluated.id)}")
    if passed < 0.995 * report.total:
        raise typer.Exit(1)
