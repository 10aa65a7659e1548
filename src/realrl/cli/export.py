"""`realrl export`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from realrl.cli.common import parse_overrides, quiet_libraries, say


def export(
    context: typer.Context,
    engine: Annotated[
        Literal["trl", "verl"],
        typer.Argument(help="trl: a Python script for accelerate; verl: a shell script that starts verl."),
    ],
    recipe: Annotated[str, typer.Argument(help="Path of a recipe (TOML).")],
    output: Annotated[
        str | None, typer.Option("-o", help="Write the script and its data into this folder; default: print the script.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs, and processes, on each node.")] = 8,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into the folder even if it already has files.")] = False,
) -> None:
    """Turn a recipe into a script for TRL or verl that trains with the same objective, on one node or many."""
    from realrl.config import load_config
    from realrl.integrations.export import Machines, export_trl, export_verl

    quiet_libraries()
    words = ["realrl", "export", engine, recipe, "--gpus-per-node", str(gpus_per_node), "--nodes", str(nodes), *context.args]
    config = load_config(recipe, parse_overrides(context.args))
    exported = {"trl": export_trl, "verl": export_verl}[engine](
        config, Machines(gpus_per_node, nodes), made_by=" ".join(map(shlex.quote, words))
    )
    for note in exported.notes:
        say(f"{engine}: {note}", file=sys.stderr)
    if output is None:
        say(exported.script.rstrip("\n"))
        return
    exported.write(Path(output), overwrite=overwrite)
    say(f"cd {shlex.quote(output)} && {exported.command}")
