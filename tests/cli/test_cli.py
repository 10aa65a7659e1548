import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from realrl.cli import app
from realrl.cli.common import parse_overrides
from realrl.training import Summary


@pytest.mark.parametrize(
    "arguments", [["--optim.lr", "1e-6", "--data.strict=true"], ["--optim.lr=1e-6", "--data.strict", "true"]]
)
def test_overrides_in_both_spellings(arguments):
    assert parse_overrides(arguments) == {"optim.lr": "1e-6", "data.strict": "true"}


def test_the_commands_that_a_stopped_run_prints_keep_its_overrides(tmp_path, monkeypatch):
    """Without them --resume would go on in another folder, or train something else."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('[model]\npath = "tiny-adder"\n[data]\ntrain = "column_addition"\n[log]\nfigure = false\n')
    stopped = Summary(Path("runs/a b"), 3, 9, 2, Path("runs/a b/checkpoints/step_3"))
    monkeypatch.setattr("realrl.training.train", lambda config, **_: stopped)
    overrides = ["--run.dir", "runs/a b", "--objective.tau", "0.25"]
    result = CliRunner().invoke(app, ["train", str(recipe), *overrides, "--overwrite"])
    printed = [line.rpartition("realrl ")[2] for line in result.output.splitlines() if "realrl train" in line]
    assert [shlex.split(line) for line in printed] == [
        ["train", str(recipe), *overrides, "--resume"],
        ["train", str(recipe), "--run.dir", "runs/a b-seed1", "--objective.tau", "0.25", "--run.seed", "1"],
    ]
    assert result.exit_code == 130


def test_the_usage_of_eval_is_what_a_user_writes():
    usage = CliRunner().invoke(app, ["eval", "--help"]).output
    assert "eval run" not in usage and "Pass@1 of a model" in usage


@pytest.mark.parametrize("module", ["realrl.cli", "realrl.config", "realrl"])
def test_the_command_line_starts_without_the_heavy_libraries(module):
    """In a process of its own: `realrl --help` must not wait seconds for torch."""
    heavy = {"torch", "transformers", "pandas", "pyarrow", "numpy", "matplotlib", "datasets", "sympy", "jaxtyping"}
    program = f"import sys, {module}; print(*sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
