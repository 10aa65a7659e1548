"""`realrl show-config`."""

from __future__ import annotations

from typing import Annotated

import typer

from realrl.cli.common import parse_overrides, say


def show_config(context: typer.Context, recipe: Annotated[str, typer.Argument(help="Path of a recipe (TOML).")]) -> None:
    """Print the resolved recipe: its base, its own keys, the overrides, and the default of every other key."""
    from realrl.config import dump_config, load_config

    say(dump_config(load_config(recipe, parse_overrides(context.args))).rstrip("\n"))
