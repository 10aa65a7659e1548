import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from realrl.cli import _print_summary, app, parse_overrides
from realrl.config import parse_config
from realrl.train import Summary


@pytest.mark.parametrize(
    "arguments", [["--optim.lr", "1e-6", "--data.strict=true"], ["--optim.lr=1e-6", "--data.strict", "true"]]
)
def test_overrides_in_both_spellings(arguments):
    assert parse_overrides(arguments) == {"optim.lr": "1e-6", "data.strict": "true"}


def test_the_commands_that_a_stopped_run_prints_keep_its_overrides(capsys):
    """Without them --resume would go on in another folder, or train something else."""
    config = parse_config({"model": {"path": "tiny-adder"}, "data": {"train": "column_addition"}})
    command = "realrl train tiny.toml --run.dir 'runs/a b' --objective.tau 0.25"
    _print_summary(Summary(Path("runs/a b"), 3, 9, 2, Path("runs/a b/checkpoints/step_3"), []), command, config)
    printed = [line.rpartition("realrl train")[2] for line in capsys.readouterr().out.splitlines() if "realrl train" in line]
    assert [shlex.split(line)[:5] for line in printed] == [shlex.split(command)[2:]] * 2
    assert printed[0].endswith(" --resume") and printed[1].endswith(" --run.dir runs/other --run.seed 1")


def test_the_usage_of_eval_is_what_a_user_writes():
    usage = CliRunner().invoke(app, ["eval", "--help"]).output
    assert "eval run" not in usage and "Pass@1 of a model" in usage
