"""The command line, one file for each command: `realrl train | eval | report | …` (`realrl --help` lists all).

A command imports what it needs when it runs, so `realrl --help` needs neither torch nor transformers.
"""

from __future__ import annotations

import io
import os
import sys

import typer

from realrl.cli import check_model, data, debug_batch, estimate, eval, export, figures, grade, report, show_config, sweep, train
from realrl.cli.common import WITH_OVERRIDES, fail, say
from realrl.errors import RealrlError
from realrl.system.memory import keep_freed_memory

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train language models with verifiable rewards as labels (REAL, arXiv 2602.05630).",
)
app.command(**WITH_OVERRIDES)(train.train)
app.command(**WITH_OVERRIDES)(estimate.estimate)
app.command(name="show-config", **WITH_OVERRIDES)(show_config.show_config)
app.command(**WITH_OVERRIDES)(export.export)
app.command()(sweep.sweep)
app.command()(grade.grade)
app.command()(figures.figures)
app.command()(report.report)
app.command(name="debug-batch")(debug_batch.debug_batch)
app.command(name="check-model")(check_model.check_model)
app.command()(report.watch)
app.add_typer(eval.app, name="eval", help="Evaluate a model on benchmarks; compare two evaluations.")
app.add_typer(data.app, name="data", help="Data sets: list them, show problems, check the gold answers.")


def main() -> None:
    """Entry point: the project's own errors become one line on stderr and exit status 1."""
    if sys.platform == "win32":
        fail("realrl runs on Linux and macOS; on Windows use Linux in WSL2 (docs/platforms.md)")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait slow a shared machine down many times over. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows other characters as escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except RealrlError as error:
        fail(str(error))
    except OSError as error:
        # A problem with a file, a disk or a connection: a traceback would not help the user.
        fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    except KeyboardInterrupt:
        say("realrl: interrupted; continue train with --resume, eval with the same command", file=sys.stderr)
        sys.exit(130)
