"""`realrl train`, `--resume` and `realrl eval` with LoRA as real commands, on the tiny adder."""

import json
import shutil
from pathlib import Path

import forked
import pyarrow.parquet as pq
import pytest
import torch
from forked import ROOT
from safetensors.torch import load_file

from realrl.models import resolve_model

pytest.importorskip("peft", reason="needs peft: pip install 'realrl[lora]'")
TINY = str(ROOT / "recipes" / "tiny.toml")
SMALL = "--train.prompts_per_step 4 --train.mini_batch_prompts 2 --eval.problems 8 --sampling.group_size 4"
LORA = "--model.lora.rank 4 --model.lora.alpha 16 --optim.lr 2e-3 --checkpoint.every 3"
# Reference log-probabilities by switching the adapters off.
GRPO = '[objective]\ntype = "grpo"\nkl = { target = "ref", coef = 0.05 }\n\n'


@pytest.fixture(scope="session", autouse=True)
def adder():
    return resolve_model("tiny-adder")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    head, _, tail = Path(TINY).read_text().partition("[objective]")
    path = tmp_path_factory.mktemp("recipe") / "grpo.toml"
    path.write_text(f"{head}{GRPO}[train]{tail.partition('[train]')[2]}")
    return path


def realrl(*arguments, check=True):
    words = [word for argument in arguments for word in str(argument).split()]
    result = forked.realrl(*words)
    if check:
        assert result.returncode == 0, result.stderr
    return result


def step_folder(run, step):
    return run / "checkpoints" / f"step_{step}"


def tensors(run, step, name):
    return load_file(step_folder(run, step) / f"{name}.safetensors")


def test_train_resume_and_eval_with_adapters(tmp_path, recipe, adder):
    run, whole = tmp_path / "run", tmp_path / "whole"
    first = realrl("train", recipe, "--run.dir", run, SMALL, LORA, "--train.steps 3").stdout
    assert "M in training" in first
    folder = step_folder(run, 3)
    assert not (folder / "model.safetensors").exists() and not (folder / "config.json").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == adder
    moved = [name for name, value in tensors(run, 3, "adapter_model").items() if "lora_B" in name and bool(value.any())]
    assert len(moved) == 4 * 7  # every linear layer of the four blocks
    out = realrl("train", recipe, "--run.dir", run, SMALL, LORA, "--train.steps 5 --resume").stdout
    assert "resuming" in out
    realrl("train", recipe, "--run.dir", whole, SMALL, LORA, "--train.steps 5")
    for name in ("adapter_model", "optimizer"):
        expected, found = tensors(whole, 5, name), tensors(run, 5, name)
        assert expected.keys() == found.keys() and len(found) >= 56
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    losses = [[r["loss"] for r in map(json.loads, (one / "metrics.jsonl").open()) if "loss" in r] for one in (run, whole)]
    assert len(losses[0]) == 5 and losses[0] == losses[1]
    # The checkpoint is a model for every command.
    arguments = "--benchmarks column_addition --samples 2 --problems 16 --recipe"
    out = realrl("eval", step_folder(run, 5), arguments, run / "config.toml", "-o", tmp_path / "eval").stdout
    assert "| column_addition |       16 |       2 | 0." in out
    assert pq.read_table(tmp_path / "eval" / "samples" / "column_addition.parquet").num_rows == 32


def test_other_adapters_or_none_cannot_go_on(tmp_path):
    run = tmp_path / "run"
    realrl("train", TINY, "--run.dir", run, SMALL, LORA, "--train.steps 1")
    for words in ("--model.lora.rank 8 --model.lora.alpha 16", ""):
        result = realrl("train", TINY, "--run.dir", run, SMALL, "--train.steps 2 --resume", words, check=False)
        lines = result.stderr.strip().splitlines()
        assert result.returncode == 1 and "was trained with LoRA of rank 4 and alpha 16" in lines[-1]
    shutil.rmtree(step_folder(run, 1))


def test_bfloat16_with_master_weights_resumes_bit_for_bit(tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    options = f"{SMALL} --model.dtype bfloat16 --optim.master_weights true --checkpoint.every 2"
    realrl("train", TINY, "--run.dir", run, options, "--train.steps 2")
    realrl("train", TINY, "--run.dir", run, options, "--train.steps 4 --resume")
    realrl("train", TINY, "--run.dir", whole, options, "--train.steps 4")
    for name in ("model", "optimizer"):
        expected, found = tensors(whole, 4, name), tensors(run, 4, name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    masters = {key: value for key, value in tensors(run, 4, "optimizer").items() if key.endswith("/master")}
    weights = tensors(run, 4, "model")
    assert len(masters) == len(weights) and all(value.dtype == torch.float32 for value in masters.values())
    assert all(torch.equal(value.bfloat16(), weights[key.removesuffix("/master")]) for key, value in masters.items())
