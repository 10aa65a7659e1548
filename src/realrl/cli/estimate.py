"""`realrl estimate`."""

from __future__ import annotations

from typing import Annotated

import typer

from realrl.cli.common import parse_overrides, quiet_libraries, say


def estimate(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Path of a recipe (TOML).")],
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Mean number of tokens in a prompt; default: measured on the data.")
    ] = None,
    response_tokens: Annotated[
        int | None, typer.Option(min=1, help="Mean number of tokens in a response; default: 0.6 × sampling.max_new_tokens.")
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(
            min=1e6,
            help="FLOP/s of one GPU of the machine that will train, for a matrix product; default: measure this machine.",
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of devices that share the work.")] = 1,
) -> None:
    """Estimate the time, memory and disk of a recipe. On another machine: realrl estimate RECIPE.toml --flops 4e14 --gpus 8"""
    from realrl.config import load_config
    from realrl.training import estimate as lines_of

    config = load_config(recipe, parse_overrides(context.args))
    quiet_libraries()
    for line in lines_of(config, prompt_tokens=prompt_tokens, response_tokens=response_tokens, flops=flops, gpus=gpus):
        say(line)
