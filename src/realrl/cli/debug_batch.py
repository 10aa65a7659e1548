"""`realrl debug-batch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realrl.cli.common import quiet_libraries, say


def debug_batch(
    file: Annotated[str, typer.Argument(help="A file of a run's debug/: a mini-batch whose update was skipped.")],
    model: Annotated[
        str | None,
        typer.Option(help="Folder of the model to compute it with; default: the run's newest checkpoint up to that round."),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run the code that comes with the model, if the run's recipe trusted it."),
    ] = False,
) -> None:
    """Compute again a mini-batch whose loss or gradient was not finite, and show which values are not finite."""
    from realrl.training.debug import replay

    quiet_libraries()
    say(replay(Path(file), model, trust_remote_code=trust_remote_code))
