"""`realrl sweep` as a real command: a failing run, Ctrl-C, going on, and the tables."""

import fcntl
import json
import signal
import subprocess
import sys

import forked
from forked import ROOT
from patience import PATIENCE_S, wait_until

SWEEP = """
base = "{root}/recipes/tiny.toml"
dir = "{folder}/runs"
seeds = [0, 1]
reference = "real"
checkpoints = false
[set]
train.steps = {steps}
train.prompts_per_step = 4
train.mini_batch_prompts = 2
eval.problems = 8
log.figure = false
[variants.real]
[variants.broken]
data.train = "nowhere.jsonl"
"""


def command(file, *arguments):
    return [sys.executable, "-m", "realrl", "sweep", str(file), *arguments]


def realrl_sweep(file, *arguments):
    return forked.realrl("sweep", file, *arguments)


def write_sweep(folder, steps):
    file = folder / "sweep.toml"
    file.write_text(SWEEP.format(root=ROOT, folder=folder, steps=steps))
    return file


def statuses(folder):
    return {row["name"]: row["status"] for row in json.loads((folder / "runs" / "summary.json").read_text())["runs"]}


def test_a_failing_run_stops_no_other_and_finished_runs_are_not_made_again(tmp_path):
    file = write_sweep(tmp_path, 3)
    listed = realrl_sweep(file, "--list")
    assert listed.returncode == 0 and listed.stdout.count("not run") == 4 and not (tmp_path / "runs").exists()
    first = realrl_sweep(file, "--jobs", "2")
    assert first.returncode == 1, first.stderr
    expected = {"real-seed0": "finished", "broken-seed0": "failed", "real-seed1": "finished", "broken-seed1": "failed"}
    assert statuses(tmp_path) == expected
    assert "nowhere.jsonl" in first.stdout and "realrl: error" in first.stdout
    records = (tmp_path / "runs" / "real-seed0" / "metrics.jsonl").read_text()
    assert not (tmp_path / "runs" / "real-seed0" / "checkpoints").exists()
    again = realrl_sweep(file, "--only", "real-*")
    assert again.returncode == 0 and "0 runs to do" in again.stdout and statuses(tmp_path) == expected
    assert (tmp_path / "runs" / "real-seed0" / "metrics.jsonl").read_text() == records
    table = realrl_sweep(file, "--table", str(tmp_path / "tables"))
    assert table.returncode == 0 and "2 of 4 runs are finished" in table.stdout
    assert (tmp_path / "tables" / "study.md").read_text() == table.stdout
    # The same folder under another recipe is refused, and stays what it is.
    write_sweep(tmp_path, 4)
    changed = realrl_sweep(file, "--only", "real-*")
    assert changed.returncode == 1 and "train.steps = 3 (the sweep has 4)" in changed.stdout
    assert (tmp_path / "runs" / "real-seed0" / "metrics.jsonl").read_text() == records


def test_ctrl_c_stops_the_runs_cleanly_and_the_same_command_goes_on(tmp_path):
    file = write_sweep(tmp_path, 40)
    file.write_text(file.read_text().replace("seeds = [0, 1]", "seeds = [0]"))
    run = tmp_path / "runs" / "real-seed0"
    process = subprocess.Popen(
        command(file, "--only", "real-*"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def steps():
        path = run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [record["step"] for record in map(json.loads, lines) if "reward/mean" in record]

    wait_until(lambda: len(steps()) >= 2 or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130 and "the same command continues" in err, err
    assert statuses(tmp_path) == {"real-seed0": "unfinished", "broken-seed0": "not run"} and "unfinished" in out
    stopped = len(steps())
    assert 2 <= stopped < 40 and (run / "checkpoints" / f"step_{stopped}").is_dir()
    # The trainer and its grading workers hold the log's lock for as long as one of them lives.
    with (tmp_path / "runs" / "logs" / "real-seed0.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    goes_on = realrl_sweep(file, "--only", "real-*")
    assert goes_on.returncode == 0, goes_on.stdout
    assert steps() == list(range(1, 41)) and f"at step {stopped}" in (tmp_path / "runs" / "logs" / "real-seed0.log").read_text()
