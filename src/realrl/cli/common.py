"""Shared by the commands: printing, overrides of the recipe, and libraries without their progress bars."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, NoReturn, TextIO

import typer

from realrl.system.terminal import printable

# Arguments of `app.command` for commands that accept any key of the recipe as an option.
WITH_OVERRIDES: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "epilog": "Every key of the recipe is an option under its dotted name, e.g. --optim.lr 1e-6 --train.steps 10.",
}
# Name and password in a URL.
_LOGIN = re.compile(r"://[^/\s@]+@")


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print lines. Every command prints through this function: names, paths and errors can hold text of models and data, and
    characters that could control the terminal are shown as escapes."""
    print("\n".join(map(printable, text.split("\n"))), file=file or sys.stdout, flush=True)


def fail(message: str) -> NoReturn:
    """Print the message as one line on stderr, without passwords of URLs, and exit with status 1."""
    rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
    say(f"realrl: error{rank}: " + _LOGIN.sub("://…@", message).replace("\n", " "), file=sys.stderr)
    sys.exit(1)


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    """`["--optim.lr", "1e-6", "--data.strict=true"]` as a mapping; anything else is a usage error."""
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--") or "." not in name:
            raise typer.BadParameter(f"unexpected argument {name!r}; overrides are written --section.key value")
        name, equals, value = name.removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise typer.BadParameter(f"--{name} needs a value")
            value = rest.pop(0)
        overrides[name] = value
    return overrides


def quiet_libraries() -> None:
    """Switch off the warnings and progress bars of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
