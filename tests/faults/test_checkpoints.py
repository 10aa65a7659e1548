"""A checkpoint whose files are not what was written is never resumed from."""

import hashlib
import json
import shutil
import subprocess

import pytest
from small_runs import assert_same_run, config

from realrl.errors import TrainingError
from realrl.training import train
from realrl.training.checkpoint import newest_whole


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A whole run of six steps, with checkpoints of steps 2, 4 and 6."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(config(tiny_folder, run))
    return run


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_the_sums_are_those_of_the_files_and_sha256sum_agrees(finished):
    folder = finished / "checkpoints" / "step_4"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert listed == {name: digest for name, digest in expected.items() if name != "SHA256SUMS"}
    assert {"model.safetensors", "optimizer.safetensors", "trainer.json"} <= listed.keys()
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("fault", [truncate, flip, lambda file: file.unlink()], ids=["truncated", "flipped", "gone"])
def test_any_damaged_file_sends_the_run_to_the_next_older_checkpoint(copy, fault):
    newest = copy / "checkpoints" / "step_6"
    for name in sorted(path.name for path in newest.iterdir()):
        if name == "SHA256SUMS" and fault not in (truncate, flip):
            continue  # without it a checkpoint counts as one from before there were sums
        kept = (newest / name).read_bytes()
        fault(newest / name)
        # The last byte of SHA256SUMS and of a JSON file that is not read again ends a line: only sums that differ count.
        found, warnings = newest_whole(copy / "checkpoints")
        if (name, fault) == ("SHA256SUMS", truncate):
            assert found == newest
        else:
            assert found == copy / "checkpoints" / "step_4", name
            assert len(warnings) == 1 and str(newest) in warnings[0] and "damaged" in warnings[0]
        (newest / name).write_bytes(kept)
    assert newest_whole(copy / "checkpoints") == (newest, [])


def test_a_list_of_sums_that_was_cut_short_does_not_pass(copy):
    sums = copy / "checkpoints" / "step_6" / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        sums.write_text("".join(lines[:kept]))
        found, warnings = newest_whole(copy / "checkpoints")
        assert found.name == "step_4" and "cut short" in warnings[0]


def test_a_run_goes_on_from_an_older_checkpoint_and_replaces_the_damaged_one(copy, finished, tiny_folder, capsys):
    damaged = copy / "checkpoints" / "step_6" / "optimizer.safetensors"
    truncate(damaged)
    (copy / "checkpoints" / ".writing_step_7").mkdir()
    train(config(tiny_folder, copy), resume=True)
    out = capsys.readouterr().out
    assert f"WARNING: {damaged.parent} is damaged" in out and "optimizer.safetensors" in out and "at step 4" in out
    assert_same_run(copy, finished)


def test_a_damaged_checkpoint_of_a_later_step_does_not_push_out_the_ones_that_are_written(copy, tiny_folder):
    flip(copy / "checkpoints" / "step_6" / "model.safetensors")
    checkpoint = {"every": 1, "keep": 1}
    train(config(tiny_folder, copy, checkpoint=checkpoint, train={"steps": 5}), resume=True)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["step_5", "step_6"]
    assert newest_whole(copy / "checkpoints")[0].name == "step_5"


def test_what_a_kill_left_of_the_last_save_goes_on_resume(copy, tiny_folder):
    """The new checkpoint was in place, the old ones not removed yet, or in part."""
    (copy / "checkpoints" / "step_2").rename(copy / "checkpoints" / ".removed_step_2")
    train(config(tiny_folder, copy, checkpoint={"keep": 1}), resume=True)
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["step_6"]


def test_without_a_whole_checkpoint_nothing_is_touched(copy, tiny_folder):
    for step in (2, 4, 6):
        flip(copy / "checkpoints" / f"step_{step}" / "model.safetensors")
    before = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(TrainingError, match=r"is undamaged \(step_6: not as in SHA256SUMS: model.safetensors; step_4"):
        train(config(tiny_folder, copy), resume=True)
    assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("every", [2, 0])
def test_a_run_that_came_to_no_checkpoint_begins_again(copy, finished, tiny_folder, capsys, every):
    """Killed in its second step, whose record and rollouts were there."""
    shutil.rmtree(copy / "checkpoints")
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 2) + lines[-1][:20])
    train(config(tiny_folder, copy, checkpoint={"every": every}), resume=True)
    assert "no checkpoint was made yet: the run begins again" in capsys.readouterr().out
    for step in (2, 4) if every == 0 else ():
        shutil.copytree(finished / "checkpoints" / f"step_{step}", copy / "checkpoints" / f"step_{step}")
    assert_same_run(copy, finished)


@pytest.mark.parametrize("every", [2, 0])
def test_where_checkpoints_were_due_and_are_gone_nothing_is_touched(copy, tiny_folder, every):
    """Of step 2 and later ones; with `every` 0 of the last."""
    shutil.rmtree(copy / "checkpoints")
    before = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(TrainingError, match=r"nothing to resume: no checkpoint in .*; start with --overwrite"):
        train(config(tiny_folder, copy, checkpoint={"every": every}), resume=True)
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_what_was_changed_is_said_what_was_taken_out_included(tiny_folder, tmp_path, capsys):
    before = {"train": {"steps": 2}, "eval": {"top_p": 0.5}}
    train(config(tiny_folder, tmp_path / "run", **before))
    capsys.readouterr()
    train(config(tiny_folder, tmp_path / "run", train={"steps": 3}, optim={"lr": 2e-3}), resume=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed after step 2: ")]
    assert sorted(line.removeprefix("changed after step 2: ") for line in lines) == [
        "eval.top_p = 0.5 → None",
        "optim.lr = 0.001 → 0.002",
        "train.steps = 2 → 3",
    ]


def test_a_finished_run_says_how_it_would_go_on_and_stays_what_it_is(copy, tiny_folder, capsys):
    before = (copy / "config.toml").read_bytes()
    train(config(tiny_folder, copy, optim={"lr": 2e-3}), resume=True)
    assert "the run has its 6 steps; it goes on with --train.steps 7 or more" in capsys.readouterr().out
    assert (copy / "config.toml").read_bytes() == before
