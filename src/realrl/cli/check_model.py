"""`realrl check-model`."""

from __future__ import annotations

from typing import Annotated

import typer

from realrl.cli.common import quiet_libraries, say


def check_model(
    path: Annotated[str, typer.Argument(help="A folder, a built-in model or a hub name.", metavar="PATH")],
    longest: Annotated[int, typer.Option(help="Tokens of the longest row in the checks.")] = 38,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Also check LoRA on the head and a checkpoint; needs disk space for the model and its optimizer."
        ),
    ] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run Python code that comes with the model.")] = False,
) -> None:
    """Check that a model's log-probabilities, gradients and samples are exact, in float32 against plain transformers."""
    from realrl.training.check_model import CHECKS, QUICK, check_model

    quiet_libraries()
    wrong = False
    for part, found in check_model(
        path, longest, parts=tuple(CHECKS) if everything else QUICK, trust_remote_code=trust_remote_code
    ):
        size = "" if found.error is None else f"{found.error:.1e} {'nats' if part in ('logprobs', 'sampling') else 'at most'}"
        say(f"{part:14}{found.status:9}{size:14}{found.message}".rstrip())
        wrong |= found.status == "WRONG" or (found.status == "refused" and part in ("logprobs", "gradient"))
    if wrong:
        raise typer.Exit(1)
