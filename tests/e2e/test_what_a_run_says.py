"""What a run says of itself: a verifier that fails, changed recipes, a collapse, and the end of a run that was resumed."""

import json
import re
import shlex
import shutil

import forked
import pyarrow.parquet as pq
import pytest
from forked import ROOT

from realrl.report.report import report_data

TINY = str(ROOT / "recipes" / "tiny.toml")
SMALL = "--train.prompts_per_step 4 --train.mini_batch_prompts 2 --eval.problems 8 --sampling.group_size 4 --log.figure false"


def train(folder, *arguments, status=0):
    words = [word for argument in (SMALL, *arguments) for word in shlex.split(argument)]
    done = forked.realrl("train", TINY, "--run.dir", folder, *words)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr.strip()


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("none", "NoneType"),
        ("text", "could not convert string to float: 'True'"),
        ("two", "returned 2.0; a score must be in"),
        ("alone", "takes 1 positional argument but 2 were given"),
        ("lost", "KeyError: 'no key'"),
    ],
)
def test_a_verifier_that_always_fails_is_refused_before_any_work(tmp_path, name, reason):
    error = train(tmp_path / "run", f"--reward.type pool_verifiers:{name}", status=1)
    assert len(error.splitlines()) == 1 and "failed on 4 of 4 responses, first: " in error and reason in error
    assert not (tmp_path / "run").exists()


def test_a_round_in_which_the_verifier_fails_on_all_responses_stops_the_run(tmp_path):
    error = train(tmp_path / "run", "--train.steps 2 --reward.type pool_verifiers:lost_later", status=1)
    assert len(error.splitlines()) == 1 and "step 1: " in error
    assert "pool_verifiers:lost_later' failed on 16 of 16 responses, first: KeyError: 'no key'" in error
    assert "failed on 16 of 16 responses" in (tmp_path / "run" / "alarms.txt").read_text()
    assert not [record for record in records(tmp_path / "run") if "reward/mean" in record]


def test_an_alarm_says_on_how_many_responses_the_verifier_failed_and_why(tmp_path):
    out = train(tmp_path / "run", "--train.steps 1 --reward.type pool_verifiers:lost_at_times")
    count = int(next(record["reward/grader_errors"] for record in records(tmp_path / "run") if "loss" in record))
    assert 0 < count < 16
    assert f"step 1: ALARM: the grader failed on {count} of 16 responses, first: KeyError: 'no key'" in out


@pytest.mark.parametrize("name, when", [("half", "before training: "), ("half_later", "step 1: ")])
def test_a_score_that_is_no_label_names_the_threshold(tmp_path, name, when):
    error = train(tmp_path / "run", f"--train.steps 1 --reward.type pool_verifiers:{name}", status=1)
    assert len(error.splitlines()) == 1 and when in error
    assert "gave the reward 0.5, and objective.type = 'real' needs labels 0 or 1; set reward.threshold" in error
    train(tmp_path / "grpo", f"--train.steps 1 --objective.type grpo --reward.type pool_verifiers:{name}")


def test_the_end_of_a_resumed_run_speaks_of_the_whole_run(tmp_path):
    """Its gain and examples are those of the same run in one go."""
    options = "--checkpoint.every 2 --eval.every 1 --log.examples 2"

    def end(out):
        return [line for line in out[out.index("\nheld-out") :].splitlines() if "realrl" not in line and "files in" not in line]

    expected = end(train(tmp_path / "whole", options, "--train.steps 4"))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step_4")
    out = train(tmp_path / "parts", options, "--train.steps 4 --resume")
    assert "at step 2" in out and end(out) == expected
    accuracy = "eval/column_addition/sampled/accuracy"
    first, *_, last = (record[accuracy] for record in records(tmp_path / "whole") if accuracy in record)
    assert f": {first:.3f} ± " in expected[1] and "(step 0) → " in expected[1] and f"gain {last - first:+.3f}" in expected[1]


def test_the_examples_are_problems_whose_verdict_changed_and_the_next_command_names_one_folder(tmp_path):
    out = train(tmp_path / "run", "--train.steps 8 --optim.lr 1e-3 --eval.problems 32 --log.examples 2")
    rows = [
        {row["problem"]: row["status"] == "correct" for row in pq.read_table(file, columns=["problem", "status"]).to_pylist()}
        for file in sorted((tmp_path / "run" / "eval").glob("*_sampled_*.parquet"))
    ]
    changed = [problem for problem in rows[0] if rows[0][problem] != rows[1][problem]]
    assert len(changed) >= 2
    assert re.findall(r"^  (\S+)  gold", out, re.MULTILINE) == changed[:2]
    words = shlex.split(out.splitlines()[-1])
    assert words.count("--run.dir") == 1 and words[words.index("--run.dir") + 1] == f"{tmp_path}/run-seed1"


def test_resume_begins_a_run_that_does_not_exist_yet(tmp_path):
    out = train(tmp_path / "run", "--train.steps 1 --resume")
    assert f"nothing to resume in {tmp_path}/run, which does not exist: the run begins" in out
    assert "the run has its 1 steps" in train(tmp_path / "run", "--train.steps 1 --resume")


def test_a_changed_recipe_is_printed_and_shown_for_the_steps_that_it_was_of(tmp_path):
    run, options = tmp_path / "run", "--checkpoint.every 1 --eval.at_start false --data.eval []"
    train(run, options, "--train.steps 2 --optim.lr 1e-4")
    first = (run / "config.toml").read_bytes()
    error = train(run, options, "--train.steps 4 --optim.lr 1e-4 --sampling.group_size 2 --resume", status=1)
    assert "sampling.group_size = 4 → 2" in error and "go on all the same with --force" in error
    assert (run / "config.toml").read_bytes() == first
    out = train(run, options, "--train.steps 4 --optim.lr 5e-5 --sampling.group_size 2 --resume --force")
    changes = {"train.steps": ["2", "4"], "optim.lr": ["0.0001", "5e-05"], "sampling.group_size": ["4", "2"]}
    assert {line for line in out.splitlines() if line.startswith("changed")} == {
        f"changed after step 2: {key} = {before} → {after}" for key, (before, after) in changes.items()
    }
    assert (run / "config_until_step_000002.toml").read_bytes() == first
    # Back at step 2 with the first recipe: what came after is void, and so is the change of it.
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step_{step}")
    out = train(run, options, "--train.steps 3 --optim.lr 1e-4 --resume")
    assert [line for line in out.splitlines() if line.startswith("changed")] == ["changed after step 2: train.steps = 2 → 3"]
    out = train(run, options, "--train.steps 4 --optim.lr 1e-4 --sampling.group_size 2 --resume --force")
    assert sorted(path.name for path in run.glob("config*")) == [
        "config.toml",
        "config_until_step_000002.toml",
        "config_until_step_000003.toml",
    ]
    data = report_data([run])
    assert [(row["step"], row["key"], row["values"]) for row in data["changes"]] == [
        (2, "train.steps", ["2", "3"]),
        (3, "sampling.group_size", ["4", "2"]),
        (3, "train.steps", ["3", "4"]),
    ]
    facts = {fact["name"]: fact["values"] for fact in data["common"]}
    assert facts["Optimizer"] == ["adamw, lr 0.0001, constant"]
    before, after = (f"4 prompts × {size} rollouts per sampling round, 2 prompts per update" for size in (4, 2))
    assert facts["Batch"] == [f"{before} (to step 3); then {after}"]
    assert report_data([run])["series"][0]["label"] == "real, changed after step 2, changed after step 3"


# At this rate the policy unlearns the task within some rounds, whatever its draws.
COLLAPSING = "--optim.lr 3e-3 --eval.every 5 --eval.problems 64 --checkpoint.every 5"


def test_a_collapse_rings_is_named_at_the_end_and_marked_in_a_sweep(tmp_path):
    words = f"{SMALL} {COLLAPSING} --train.steps 10".split()
    settings = dict(zip(words[::2], words[1::2], strict=True))
    head = f'base = "{TINY}"\ndir = "{tmp_path}/runs"\n[set]\n'
    (tmp_path / "sweep.toml").write_text(head + "".join(f"{key[2:]} = {value}\n" for key, value in settings.items()))
    done = forked.realrl("sweep", tmp_path / "sweep.toml")
    assert done.returncode == 0, done.stderr
    alarms = (tmp_path / "runs" / "run-seed0" / "alarms.txt").read_text()
    rung = re.findall(
        r"^step (\d+): ALARM: held-out accuracy collapsed: column_addition, sampled, is 0\.", alarms, re.MULTILINE
    )
    assert rung == ["5"]
    assert re.search(r"^\| run-seed0 +\| finished, collapsed at step 5 ", done.stdout, re.MULTILINE)
    assert "\nalarm, step 5: held-out accuracy collapsed: " in (tmp_path / "runs" / "logs" / "run-seed0.log").read_text()


def test_a_run_stops_at_an_alarm_of_stop_on(tmp_path):
    error = train(
        tmp_path / "run", COLLAPSING, "--train.steps 10 --checkpoint.every 3 --train.stop_on '[\"collapse\"]'", status=1
    )
    assert len(error.splitlines()) == 1 and "stopped after step 5 by train.stop_on (newest checkpoint: " in error
    assert "step_3): held-out accuracy collapsed" in error
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_3"]


def test_a_disk_that_is_too_small_is_said_before_the_first_step(tmp_path):
    """A million checkpoints are more than any disk here has."""
    error = train(tmp_path / "run", "--train.steps 10000000 --checkpoint.every 1 --checkpoint.keep 1000000", status=1)
    assert re.search(r"run.dir = .* needs about [\d.]+ GiB of [\d.]+ GiB free: checkpoints .*lower checkpoint.keep", error)
    assert not (tmp_path / "run").exists()


def test_token_ids_that_the_tokenizer_does_not_know_ring(tmp_path):
    """Rows that fill a matrix, made as probable as any token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from realrl.models import resolve_model

    base = resolve_model("tiny-adder")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer) + 8)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "wide")
    out = train(tmp_path / "run", "--train.steps 1 --eval.every 0", f"--model.path {tmp_path / 'wide'}")
    assert "ALARM: responses hold token ids that the tokenizer does not know" in out
    ids = {len(tokenizer) + extra for extra in range(8)}
    assert ids and 0 < records(tmp_path / "run")[1]["response/unknown_token_share"] <= 1
