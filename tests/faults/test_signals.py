"""SIGTERM and Ctrl-C: the first finishes the step and saves, the second ends the process where it stands."""

import json
import os
import signal

import pytest
from children import train_child
from small_runs import assert_same_run, config, records

from realrl.training import train
from realrl.training.checkpoint import newest_whole, read_progress, step_of


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_run_saves_and_the_run_goes_on_as_if_nothing_had_been(tiny_folder, tmp_path, signum):
    """Schedulers and terminals signal the grading workers, too."""
    sections = {"train": {"steps": 20}, "eval": {"every": 4}, "checkpoint": {"every": 100}}
    child = train_child(tiny_folder, tmp_path / "run", **sections)
    child.wait_for("step    3/20")
    os.killpg(child.pid, signum)
    status, out = child.wait(), child.out()
    assert status == 128 + signum, out
    assert "finishing this step" in out and "stopped after step" in out and "Traceback" not in out
    checkpoint, _ = newest_whole(tmp_path / "run" / "checkpoints")
    stopped = read_progress(checkpoint).rounds
    assert 3 <= stopped < 20 and records(tmp_path / "run")[-1]["step"] == stopped
    train(config(tiny_folder, tmp_path / "run", **sections), resume=True)
    train(config(tiny_folder, tmp_path / "whole", **sections))
    # The interrupted run has one checkpoint more.
    os.rename(checkpoint, tmp_path / "checkpoint")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert all(record.get("reward/grader_errors", 0) == 0 for record in records(tmp_path / "run"))


def test_the_second_signal_stops_at_once_and_loses_only_the_step(tiny_folder, tmp_path):
    run, gate, problems = tmp_path / "run", tmp_path / "gate", tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{n}+1=", "answer": str(gate)}) + "\n" for n in range(8)))
    child = train_child(
        tiny_folder,
        run,
        data={"train": str(problems), "eval": []},
        reward={"type": "parity:held", "timeout_s": 3600},
        train={"steps": 100_000},
        checkpoint={"every": 1},
    )
    child.wait_for("step    2/")
    gate.touch()
    # The step in progress when the signals come does not end.
    while not gate.with_name("gate.held").exists():
        assert child.wait(0.02) is None, child.out()
    os.kill(child.pid, signal.SIGINT)
    child.wait_for("finishing this step")
    os.kill(child.pid, signal.SIGINT)
    # Ended by the signal itself: 130 in a shell.
    assert child.wait() == -signal.SIGINT and "Traceback" not in child.out()
    steps = [record["step"] for record in records(run)]
    checkpoint, warnings = newest_whole(run / "checkpoints")
    # A step whose metrics are there may not have been saved yet.
    assert steps == list(range(1, len(steps) + 1)) and 0 <= len(steps) - step_of(checkpoint) <= 1 and not warnings


def test_an_evaluation_that_a_stop_leaves_out_is_made_on_resume_also_after_the_last_step(tiny_folder, tmp_path, monkeypatch):
    sections = {"train": {"steps": 4}, "checkpoint": {"every": 1}}
    train(config(tiny_folder, tmp_path / "whole", **sections))
    run = tmp_path / "run"
    import realrl.training.loop as loop

    collect, asked = loop.Collector.collect, []

    def collect_and_stop(self, step):
        if step == 3 and not asked:
            asked.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return collect(self, step)

    monkeypatch.setattr(loop.Collector, "collect", collect_and_stop)
    stopped = train(config(tiny_folder, run, **sections))
    assert (stopped.steps, stopped.signum) == (4, signal.SIGTERM)
    assert not any("eval" in name for name in records(run)[-1])
    # Killed in the middle of that evaluation, it begins anew.
    evaluation = [record for record in records(tmp_path / "whole") if "eval/column_addition/sampled/accuracy" in record][-1]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": {evaluation["step"]}, "time": 0, "eval/column_addition/sampled/accuracy": 7}}\n')
    finished = train(config(tiny_folder, run, **sections), resume=True)
    assert (finished.steps, finished.signum) == (4, 0)
    for folder in (run, tmp_path / "whole"):
        (folder / "checkpoints" / "step_4" / "trainer.json").unlink()
        (folder / "checkpoints" / "step_4" / "SHA256SUMS").unlink()
    assert_same_run(run, tmp_path / "whole")
