"""The public face: what `import realrl` offers, and that using it takes no more than it needs."""

import subprocess
import sys

import pytest
from small_runs import recipe

import realrl
from realrl.config import parse_config
from realrl.errors import ConfigError

OBJECTIVES = {"BCE", "CISPO", "DAPO", "DisCO", "DrGRPO", "GMPO", "GRPO", "GSPO", "NFT", "PACS", "Real", "SAPO", "TRPA"}
PARTS = {"AdditiveObjective", "Groups", "KLConfig", "LossInputs", "Objective", "Plan", "ScoreObjective", "build_objective"}


def test_the_names():
    """A name that leaves breaks users' code; one that comes is a promise."""
    assert set(realrl.__all__) == OBJECTIVES | PARTS | {"Summary", "train", "verify"}
    assert set(realrl.__all__) <= set(dir(realrl))
    assert all(getattr(realrl, name).__module__.startswith("realrl.") for name in realrl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = realrl.nonsense


@pytest.mark.parametrize("use", ["", 'assert realrl.verify("so \\\\boxed{1/2}", "0.5")'])
def test_verifying_takes_no_torch(use):
    program = f"import sys, realrl\n{use}\nprint(*sorted({{'torch', 'transformers', 'numpy', 'sympy'}} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_train_takes_values_and_prints_what_was_learned(tiny_folder, tmp_path):
    import tomli_w

    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(recipe(tiny_folder, tmp_path / "run")))
    summary = realrl.train(file, {"train.steps": 2, "optim.lr": 1e-4, "log.rich": False})
    assert (summary.steps, summary.total, summary.signum) == (2, 2, 0)
    assert summary.checkpoint == tmp_path / "run" / "checkpoints" / "step_2"
    first, *rest = str(summary).splitlines()
    assert first == f"{tmp_path / 'run'}: 2 of 2 rounds, newest checkpoint: {summary.checkpoint}"
    assert any(line.startswith("held-out accuracy, ") and "(step 2)" in line for line in rest)
    assert realrl.train(str(file), {"train.steps": 3}, resume=True).steps == 3


def test_overrides_go_with_a_file(tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match="overrides need the path of a recipe"):
        realrl.train(parse_config(recipe(tiny_folder, tmp_path / "run")), {"train.steps": 1})
