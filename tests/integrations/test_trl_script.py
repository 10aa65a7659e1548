"""The script of TRL's documentation with two names changed (examples/) learns the quick start's task."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="TRL is not installed: pip install 'realrl[trl]'")

EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_quickstart.py"


@pytest.mark.skipif(os.environ.get("REALRL_LONG") != "1", reason="takes ten minutes: make test-integrations")
def test_trl_s_script_with_two_names_changed_learns(tmp_path):
    done = subprocess.run([sys.executable, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("mean reward"))
    rewards = [float(word) for word in line.split(":")[1].split()]
    # Standard error of four steps of 64 rollouts: about 0.03.
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.15
    assert (tmp_path / "runs" / "trl_quickstart" / "model.safetensors").is_file()
