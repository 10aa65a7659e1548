"""`realrl train`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from realrl.cli.common import parse_overrides, quiet_libraries, say
from realrl.system.terminal import printable

if TYPE_CHECKING:
    from realrl.config import Config
    from realrl.training import Summary


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Path of a recipe (TOML).")],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the newest checkpoint of the run folder, or start if there is none. Give the same overrides.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run folder.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="With --resume: continue even if changes of the recipe make later rounds incomparable with earlier ones.",
        ),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse data with any bad row (data.strict).")] = False,
) -> None:
    """Train a model with a recipe. On several devices: torchrun --nproc-per-node 8 -m realrl train RECIPE.toml.

    Exit status: 0 after the last round; 130 or 143 when stopped by Ctrl-C or SIGTERM, after the current round is finished and
    saved (a second signal stops at once); 1 after an error.
    """
    from realrl.config import load_config
    from realrl.training import train as run_training

    overrides = parse_overrides(context.args) | ({"data.strict": "true"} if strict else {})
    config = load_config(recipe, overrides)
    quiet_libraries()
    summary = run_training(config, resume=resume, overwrite=overwrite, force=force)
    if summary is None:
        return
    if config.log.figure:
        from realrl.figures.learning_curve import learning_curve

        try:
            learning_curve(summary.folder, summary.folder / "learning_curve.png")
        except OSError as error:
            say(f"realrl: learning_curve.png cannot be written: {error}", file=sys.stderr)
    _print_summary(summary, recipe, overrides, config)
    if summary.signum:
        raise typer.Exit(128 + summary.signum)


def _print_summary(summary: Summary, recipe: str, overrides: dict[str, str], config: Config) -> None:
    """Print the results of a run and the commands that continue from it."""
    from realrl.rundir.closing import closing_lines

    def command(**changed: str) -> str:
        words = (overrides | {name.replace("_", "."): value for name, value in changed.items()}).items()
        return shlex.join(["realrl", "train", recipe, *(word for key, value in words for word in (f"--{key}", value))])

    say("")
    if summary.signum:
        say(f"stopped after step {summary.steps} of {summary.total}; continue with: {command()} --resume")
    for line in closing_lines(summary.folder, config.log.examples):
        say(printable(line))
    picture = "learning_curve.png, " if config.log.figure else ""
    say(f"files in {summary.folder}: config.toml, metrics.jsonl, {picture}eval/, rollouts/, checkpoints/")
    if summary.checkpoint:
        say("next:")
        held_out = config.data.eval[0] if config.data.eval else config.data.train
        say(f"  realrl eval {summary.checkpoint} --recipe {summary.folder}/config.toml -b {held_out} --samples 4")
        seed = config.run.seed + 1
        say(f"  {command(run_dir=f'{summary.folder}-seed{seed}', run_seed=str(seed))}")
