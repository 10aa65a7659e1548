"""Runs of a few seconds, with everything that a long one has: two optimizer steps a round, evaluation, checkpoints, tokens."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
from safetensors.torch import load_file

from realrl.config import Config, parse_config

CAMPAIGN = os.environ.get("REALRL_CAMPAIGN") == "1"
HERE = Path(__file__).parent


def recipe(model: Path, run: Path, **sections) -> dict:
    """A recipe as nested dicts; `sections` go over its keys, e.g. `train={"steps": 3}`."""
    small = {
        "run": {"dir": str(run), "threads": 1},
        "model": {"path": str(model)},
        "data": {"train": "column_addition", "eval": ["column_addition"]},
        "reward": {"type": "parity:even", "workers": 1},
        "sampling": {"group_size": 4, "max_new_tokens": 12},
        "train": {"steps": 6, "prompts_per_step": 4, "mini_batch_prompts": 2},
        "optim": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 1},
        "eval": {"every": 2, "problems": 4, "greedy": True},
        "checkpoint": {"every": 2},
        "log": {"rich": False, "tokens": True, "figure": False},
    }
    for name, keys in sections.items():
        small[name] = small.get(name, {}) | keys
    return small


def config(model: Path, run: Path, **sections) -> Config:
    return parse_config(recipe(model, run, **sections))


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(record: dict) -> dict:
    """A record without what a clock says."""
    clock = ("time", "throughput/")
    return {name: value for name, value in record.items() if not name.startswith(clock)}


def assert_same_run(found: Path, expected: Path) -> None:
    """Bit for bit: weights, optimizer, rollouts, evaluations; metrics but for times; the same files, nothing left over."""
    assert [timeless(r) for r in records(found)] == [timeless(r) for r in records(expected)]

    def files(run):
        return {path.relative_to(run) for path in run.rglob("*") if path.is_file()}

    assert files(found) == files(expected)
    for name in files(expected):
        ours, theirs = found / name, expected / name
        if name.suffix == ".parquet":
            assert pq.read_table(ours).equals(pq.read_table(theirs)), name
        elif name.suffix == ".safetensors":
            ours, theirs = load_file(ours), load_file(theirs)
            assert ours.keys() == theirs.keys()
            assert all(ours[key].equal(theirs[key]) for key in ours), name
        elif name.parts[0] == "checkpoints" or name.name == "alarms.txt":
            assert ours.read_bytes() == theirs.read_bytes(), name
