"""`make gpu-check` on the CPU with tiny sizes: every part runs, and one that fails leaves the others standing."""

import json
import os
import subprocess
import sys

from forked import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
PARTS = ["machine", "tests", "train", "repeat", "0.5b", "1.5b", "trl"]


def gpu_check(output, *arguments):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--tiny", "--output", output, *arguments]
    # Where there is a GPU, it is for others.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1600, env=environment)
    report = output / "report.json"
    return done, json.loads(report.read_text()) if report.exists() else None


def test_every_part_runs_and_one_that_fails_leaves_the_others_standing(tmp_path):
    done, report = gpu_check(tmp_path, "--fail", "1.5b", "--budget-s", "1500")
    parts = report["parts"]
    assert list(parts) == PARTS
    failed = parts.pop("1.5b")
    assert failed["status"] == "failed" and "asked to fail" in failed["error"].splitlines()[-1] and done.returncode == 1
    assert all(part["status"] == "done" for part in parts.values()), done.stdout
    results = {name: part["results"] for name, part in parts.items()}
    assert results["machine"]["versions"]["torch"] and "flash-attn" in results["machine"]["missing"]
    assert results["tests"]["counts"]["passed"] >= 40 and not results["tests"]["failures"]
    assert all(error < 1e-4 for name, error in results["tests"]["worst_relative_error"].items() if "float32" in name)
    assert results["train"]["second_run"] == results["train"]["resumed_run"] == []
    assert len(results["train"]["steps"]) == 4 and all(step["grad/norm"] > 0 for step in results["train"]["steps"])
    assert results["repeat"]["operations_that_differ"] == []
    size = results["0.5b"]
    assert len(size["training"]) == 6 and all(row["tokens_per_s"] > 0 and 0 < row["mfu"] < 1 for row in size["training"])
    assert len(size["sampling"]) == 2 and size["longest"]["tree"]["tokens"] == 128
    # In float32 the two losses have one gradient.
    assert results["trl"]["trl_over_ours"]["cosine_of_gradients"] > 0.99999
    table = (tmp_path / "report.md").read_text()
    assert table in done.stdout and "| 0.5b | 32 | tree | yes |" in table and "1.5b failed: RuntimeError" in table


def test_a_part_without_time_is_cut_and_named(tmp_path):
    done, report = gpu_check(tmp_path, "--only", "0.5b", "--budget-s", "0")
    part = report["parts"]["0.5b"]
    assert part["status"] == "cut" and part["left_out"] and done.returncode == 0
    assert "0.5b left out: " in done.stdout


def test_wrong_arguments_are_one_line(tmp_path):
    done, report = gpu_check(tmp_path, "--only", "sizes")
    assert done.returncode == 2 and "no part is called 'sizes'" in done.stderr and report is None
    done, _ = gpu_check(tmp_path, "--device", "cuda", "--only", "machine")
    assert done.returncode == 1 and "sees no CUDA device" in done.stdout
