"""A clock on the wall that jumps changes labels, and nothing else."""

import itertools
import time

import pytest
from small_runs import assert_same_run, config, records

from realrl.report.report import report_data
from realrl.training import train


def test_jumps_of_the_wall_clock_change_no_metric_but_the_label(tiny_folder, tmp_path, monkeypatch):
    sections = {"train": {"steps": 4}, "checkpoint": {"every": 2}}
    train(config(tiny_folder, tmp_path / "still", **sections))
    run, began = tmp_path / "run", time.monotonic()
    # Ten years ahead, back to 1970, and so on.
    jumps = itertools.cycle([2e9, 0.0, 5e8])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    train(config(tiny_folder, run, train={"steps": 4}, checkpoint={"every": 2}))
    monkeypatch.undo()
    elapsed = time.monotonic() - began
    assert_same_run(run, tmp_path / "still")
    steps = records(run)
    assert {record["time"] for record in steps} == {2e9, 0.0, 5e8}
    for name in {name for record in steps for name in record if name.startswith("time/")}:
        assert all(0 <= record[name] <= elapsed for record in steps if name in record), name
    clock = [record["time/run_s"] for record in steps]
    assert clock == sorted(clock)
    shown = report_data([run])["series"][0]["runs"][0]["seconds"]
    assert shown == pytest.approx(clock[-1], rel=1e-3)


def test_the_duration_of_a_resumed_run_counts_each_start(tmp_path):
    (tmp_path / "config.toml").write_text("")
    lines = [(1, 5.0), (2, 9.0), (3, 2.5), (4, 4.0), (4, 6.0), (5, 1.0)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {step}, "time": 0, "time/run_s": {seconds}, "loss": 0}}\n' for step, seconds in lines)
    )
    assert report_data([tmp_path])["series"][0]["runs"][0]["seconds"] == 9.0 + 6.0 + 1.0
