"""`torchrun -m realrl train` on gloo processes: the same run as on one, checkpoints for any number of ranks, no orphans.

Where torchrun itself is not what matters, the ranks are forked, which saves three times the imports.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pyarrow.parquet as pq
import pytest
import torch
from patience import PATIENCE_S
from safetensors.torch import load_file
from tiny_commands import ROOT, TINY, realrl, records
from transformers import AutoModelForCausalLM

# Five prompts on two ranks: one has a prompt more.
SMALL = "--train.prompts_per_step 5 --train.mini_batch_prompts 5 --eval.problems 6 --sampling.group_size 4 --run.threads 1"


def train_words(*arguments):
    return ["train", TINY, *(word for argument in (SMALL, *arguments) for word in str(argument).split())]


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "realrl"]
    words = [*command, *train_words(*arguments)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def two_ranks(*arguments):
    """The result of each of two ranks, forked."""
    return forked.on_ranks(2, forked.command, *train_words(*arguments))


def printed(ranks):
    """What all ranks printed; none failed."""
    for rank in ranks:
        assert rank.returncode == 0, rank.stderr[-3000:]
    return "".join(rank.stdout for rank in ranks)


def printed_under_torchrun(process):
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err[-3000:]
    return out


def in_the_midst(run):
    """Two ranks that have taken two steps of very many."""
    process = torchrun("--train.steps 100000 --eval.at_start false", "--run.dir", run)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step    2/"):
            break
    return process


def responses(run, step):
    return [row["response"] for row in pq.read_table(run / "rollouts" / f"step_{step:06}.parquet").to_pylist()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    realrl("train", TINY, SMALL, "--run.dir", run, "--train.steps 3 --checkpoint.every 1")
    return run


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_ranks_are_the_run_of_one_and_their_checkpoint_resumes_on_one(tmp_path, alone, parallel):
    run = tmp_path / "run"
    options = f"--train.steps 3 --checkpoint.every 2 --train.parallel {parallel} --run.dir {run}"
    out = printed_under_torchrun(torchrun(options)) if parallel == "ddp" else printed(two_ranks(options))
    assert f"2 ranks, {parallel}" in out and out.count("step    1/3") == 1
    for step in (1, 2, 3):
        assert responses(run, step) == responses(alone, step)
    for name in ("reward/mean", "loss", "grad/norm", "policy/entropy", "eval/column_addition/sampled/accuracy"):
        ours = [record[name] for record in records(run) if name in record]
        assert ours == pytest.approx([record[name] for record in records(alone) if name in record], rel=1e-4), name
    # On one rank again, from step 2; and every checkpoint is a model that transformers loads.
    saved = run / "checkpoints" / "step_2"
    assert len(list(saved.glob("model*.safetensors"))) == (2 if parallel == "fsdp2" else 1)
    whole = AutoModelForCausalLM.from_pretrained(saved).state_dict()
    expected = AutoModelForCausalLM.from_pretrained(alone / "checkpoints" / "step_2").state_dict()
    assert whole.keys() == expected.keys()
    assert all(torch.allclose(whole[name], expected[name], rtol=0, atol=2e-5) for name in expected)
    before = {name: value for file in saved.glob("optimizer*") for name, value in load_file(file).items()}
    assert before.keys() == load_file(alone / "checkpoints" / "step_2" / "optimizer.safetensors").keys()
    subprocess.run(["rm", "-r", run / "checkpoints" / "step_3"], check=True)
    realrl("train", TINY, SMALL, options, "--resume")
    assert responses(run, 3) == responses(alone, 3)


def test_a_checkpoint_of_one_rank_resumes_on_two_shards(tmp_path, alone):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", alone, run], check=True)
    # All ranks go back behind a damaged one.
    (run / "checkpoints" / "step_3" / "model.safetensors").write_bytes(b"")
    out = printed(two_ranks("--train.steps 3 --checkpoint.every 1 --train.parallel fsdp2 --resume", "--run.dir", run))
    assert out.count("step_3 is damaged (not as in SHA256SUMS: model.safetensors)") == 1
    assert responses(run, 3) == responses(alone, 3)
    assert [record["step"] for record in records(run) if "reward/mean" in record] == [1, 2, 3]


def test_bad_input_ends_every_rank_with_one_message(tmp_path):
    run = tmp_path / "run"
    ranks = two_ranks("--optim.lrr 1", "--run.dir", run)
    for number, rank in enumerate(ranks):
        (line,) = rank.stderr.splitlines()
        assert rank.returncode == 1 and f"(rank {number})" in line and "did you mean optim.lr" in line
    assert not run.exists()


def test_a_run_of_ranks_is_locked_and_saves_when_the_launcher_is_told_to_stop(tmp_path):
    run = tmp_path / "run"
    process = in_the_midst(run)
    second = realrl("train", TINY, SMALL, "--run.dir", run, "--resume", check=False)
    assert second.returncode == 1 and f"{run} is in use by process" in second.stderr
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    last = max(record["step"] for record in records(run) if "reward/mean" in record)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{last}"]


def test_a_dead_rank_ends_all(tmp_path):
    run = tmp_path / "run"
    process = in_the_midst(run)
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    trainers = [pid for pid in ranks if "realrl" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(trainers) == 2
    os.kill(trainers[1], signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0 and "SIGKILL" in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in trainers)
