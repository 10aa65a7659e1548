"""Figures from run folders: shares and intervals against hand counts; what is missing is named."""

import csv
import json
import math

import forked
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from realrl.config import dump_config, parse_config
from realrl.errors import ConfigError, DataError
from realrl.figures.distributions import figure_2, score_histograms
from realrl.figures.dynamics import figure_4, figure_5
from realrl.figures.write import _left_out, write_figures
from realrl.rundir.rollouts import write_rollouts
from realrl.rundir.runs import group_runs, read_run
from realrl.training.gradient import GradientReport
from realrl.training.metrics import token_columns
from realrl.training.update import Update
from realrl.types import Batch

# One group that teaches (two right, two wrong) and one that does not; ρ of each token, chosen around the edges.
RATIOS = [
    ("a", 1.0, [1.0, 1.3, 0.4, 1.1]),
    ("a", 1.0, [1.0, 2.5]),
    ("a", 0.0, [0.7, 1.0, 1.0]),
    ("a", 0.0, [1.6]),
    ("b", 1.0, [9.0, 9.0]),
    ("b", 1.0, [1.0]),
]


def make_run(folder, *, seed=0, objective=None, records=None, tokens=True, rollouts=True):
    folder.mkdir(parents=True)
    config = parse_config(
        {
            "model": {"path": "m"},
            "data": {"train": "t"},
            "run": {"seed": seed, "dir": str(folder)},
            "objective": objective or {"type": "real"},
            "train": {"mini_batch_prompts": 4},
        }
    )
    (folder / "config.toml").write_text(dump_config(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records or default_records(seed)))
    if rollouts:
        (folder / "rollouts").mkdir()
        for step in (1, 2):
            rows = [
                {"step": step, "group": ord(group), "reward": reward, "score": 0.25 * step, "weight": weight}
                | ({"log_ratio": np.log(ratios).astype(np.float16)} if tokens else {})
                for (group, reward, ratios), weight in zip(RATIOS, [-0.1, -0.2, 0.1, 0.05, 0.0, 0.0], strict=True)
            ]
            write_rollouts(folder / "rollouts" / f"step_{step:06}.parquet", rows)
    return folder


def default_records(seed=0):
    records = []
    for step in range(1, 5):
        records.append(
            {
                "step": step,
                "time": 0.0,
                "reward/mean": 0.1 * step + 0.01 * seed,
                "policy/entropy": 0.5,
                "groups/solved_all": 0.25,
                "grad/norm": 2.0,
                "response/length_mean": 10.0,
                "response/truncated_share": 0.0,
            }
        )
    return records + [{"step": step, "eval/t/sampled/accuracy": 0.1 * step + 0.02 * seed} for step in (0, 4)]


def groups_of(*folders):
    return group_runs([read_run(folder) for folder in folders])


def rows_of(folder, name):
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_figure_2_counts_tokens_by_sign_and_interval(tmp_path):
    out = tmp_path / "out"
    assert figure_2(groups_of(make_run(tmp_path / "run")), out)[1] == []
    shares = {
        (row["part"], row["name"], row["sign"]): (int(row["tokens"]), float(row["share"])) for row in rows_of(out, "figure_2")
    }
    # Six tokens of right and four of wrong responses in the group that teaches, in each of two rounds.
    expected_right = {"0.95–1.05": 2, "1.2–1.5": 1, "< 0.5": 1, "1.05–1.2": 1, "> 2": 1}
    expected_wrong = {"0.5–0.8": 1, "0.95–1.05": 2, "1.5–2": 1}
    for sign, expected, total in (("A > 0", expected_right, 6), ("A < 0", expected_wrong, 4)):
        found = {name: value for (part, name, s), value in shares.items() if part == "interval" and s == sign}
        assert len(found) == 8
        for name, (count, share) in found.items():
            assert count == 2 * expected.get(name, 0), (sign, name)
            assert share == pytest.approx(expected.get(name, 0) / total)
    # One-sided: 1.3 and 2.5 of the right, 0.7 of the wrong. Bidirectional: 0.4 as well, and 1.6 of the wrong.
    assert shares["dropped", "one-sided", "A > 0"] == (4, pytest.approx(2 / 6))
    assert shares["dropped", "one-sided", "A < 0"] == (2, pytest.approx(1 / 4))
    assert shares["dropped", "bidirectional", "A > 0"] == (6, pytest.approx(3 / 6))
    assert shares["dropped", "bidirectional", "A < 0"] == (4, pytest.approx(2 / 4))


def test_seeds_are_one_line_with_a_t_interval(tmp_path):
    runs = [make_run(tmp_path / f"real_{seed}", seed=seed) for seed in (0, 1, 2)]
    runs.append(make_run(tmp_path / "grpo", objective={"type": "grpo"}))
    out = tmp_path / "out"
    for draw in (figure_4, figure_5):
        assert not isinstance(draw(groups_of(*runs), out), str)
    reward = [row for row in rows_of(out, "figure_4") if row["quantity"] == "Training reward"]
    at_three = {row["recipe"]: row for row in reward if row["step"] == "3"}
    # Values 0.30, 0.31, 0.32: standard deviation 0.01, t of two degrees of freedom 4.303.
    assert float(at_three["real"]["mean"]) == pytest.approx(0.31)
    assert float(at_three["real"]["high"]) - 0.31 == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-4)
    assert at_three["real"]["runs"] == "3"
    assert (at_three["grpo"]["low"], at_three["grpo"]["mean"]) == ("", "0.3")
    last = [row for row in rows_of(out, "figure_5") if "Pass@1" in row["quantity"] and row["recipe"] == "real"]
    assert {row["seed"]: float(row["value"]) for row in last} == pytest.approx({"0": 0.4, "1": 0.42, "2": 0.44, "mean": 0.42})
    assert {row["last_step"] for row in last} == {"4"}


def test_histograms_hold_each_rollout_once(tmp_path):
    out = tmp_path / "out"
    score_histograms(groups_of(make_run(tmp_path / "run")), out)
    rows = rows_of(out, "scores")
    counts = {}
    for row in rows:
        key = row["quantity"], row["reward"], int(row["first_step"])
        counts[key] = counts.get(key, 0) + int(row["rollouts"])
    assert counts == {(q, r, step): 2 for q in ("score", "weight") for r in "01" for step in (1, 2)}
    # |W| is the saved weight times P = 4: 0.4 and 0.8 of the right rollouts.
    places = sorted(
        (float(row["low"]), float(row["high"])) for row in rows if (row["quantity"], row["reward"]) == ("weight", "1")
    )
    assert [low <= value <= high for (low, high), value in zip(places, [0.4, 0.4, 0.8, 0.8], strict=True)] == [True] * 4


def test_rollouts_of_a_skipped_update_have_no_place_in_histograms(tmp_path):
    run = make_run(tmp_path / "run")
    common = {"step": 3, "group": 0}
    rows = [{"reward": 1.0, "score": math.nan, "weight": -0.1}, {"reward": 0.0, "score": 0.1, "weight": math.inf}]
    write_rollouts(run / "rollouts" / "step_000003.parquet", [common | row for row in rows])
    score_histograms(groups_of(run), tmp_path / "out")
    assert {row["first_step"] for row in rows_of(tmp_path / "out", "scores")} == {"1", "2"}


def test_recipes_that_name_no_seed_stand_side_by_side(tmp_path):
    runs = [make_run(tmp_path / kind, objective={"type": kind}) for kind in ("real", "grpo")]
    for run in runs:
        (run / "config.toml").write_text((run / "config.toml").read_text().replace("seed = 0", ""))
    figure_5(groups_of(*runs), tmp_path / "out")
    assert {row["seed"] for row in rows_of(tmp_path / "out", "figure_5")} == {"", "mean"}


def test_what_is_missing_is_named(tmp_path):
    runs = [make_run(tmp_path / "run", tokens=False, records=[{"step": 1, "reward/mean": 0.5}])]
    report = write_figures(runs, tmp_path / "out")
    assert [reason.split()[0] for reason in report.skipped] == ["figure_2", "figure_5", "optimisation:"]
    assert "--log.tokens true" in report.skipped[0]
    assert {row["quantity"] for row in rows_of(tmp_path / "out", "figure_4")} == {"Training reward"}
    unfinished = make_run(tmp_path / "unfinished", seed=1, records=[{"step": 1, "reward/mean": 0.5}], tokens=False)
    (reason,) = _left_out(groups_of(make_run(tmp_path / "finished"), unfinished)[0])
    assert "after step 1" in reason and "unfinished has fewer" in reason and "/finished" not in reason
    bare = groups_of(make_run(tmp_path / "bare", rollouts=False))
    assert "log.rollouts" in str(score_histograms(bare, tmp_path / "out2"))
    assert "--log.tokens true" in figure_2(bare, tmp_path / "out2")[1][0]


def test_a_torn_last_line_is_passed_over_and_a_broken_one_before_it_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole[:-9])
    torn = read_run(run)
    assert torn.broken == [] and torn.series("eval/t/sampled/accuracy") == {0: 0.0}
    (run / "metrics.jsonl").write_bytes(b'{"step": 1, "rew\n' + whole + b"\x00\xff")
    damaged = read_run(run)
    assert damaged.broken == [1] and damaged.series("reward/mean") == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})
    (reason,) = _left_out(group_runs([damaged])[0])
    assert reason == f"line 1 of {run / 'metrics.jsonl'}: no record of a step"


def test_folders_that_are_no_run_and_doubled_seeds_are_errors(tmp_path):
    with pytest.raises(DataError, match="no config.toml"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match=r"same recipe and run.seed = 0"):
        groups_of(make_run(tmp_path / "run"), make_run(tmp_path / "copy"))


def test_labels_tell_recipes_apart(tmp_path):
    settings = [{"type": "real"}, {"type": "real", "tau": 0.1}, {"type": "grpo"}]
    runs = [make_run(tmp_path / str(i), objective=objective) for i, objective in enumerate(settings)]
    assert [group.label for group in groups_of(*runs)] == ["real, tau = 0.5", "real, tau = 0.1", "grpo"]


def report_of(log_ratio_NT):
    nothing = torch.zeros(len(log_ratio_NT))
    return GradientReport(
        loss=0.0,
        route="direct",
        logprobs_NT=torch.zeros_like(log_ratio_NT),
        log_ratio_NT=log_ratio_NT,
        entropy_N=nothing,
        top1_N=nothing,
        scores_N=nothing,
        weights_N=nothing,
        computed_N=nothing.bool(),
    )


def test_recorded_tokens_are_those_of_each_rollout(tmp_path):
    lengths = [2, 3, 1]
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    batch = Batch(
        prompts=[],
        response_ids=torch.tensor([[5, 6, 0], [7, 8, 70000], [9, 0, 0]]),
        loss_mask=mask,
        group_ids=torch.tensor([0, 1, 0]),
        rewards=torch.ones(3),
        levels=torch.ones(3).long(),
        logprobs_sampler=torch.zeros(3, 3),
    )
    # The first mini-batch holds rollouts 2 and 0 and is two tokens wide.
    first = Update(torch.tensor([2, 0]), report_of(torch.tensor([[0.5, 9.0], [-1.0, 0.25]])), 1.0, True, 1, 1, 100)
    second = Update(torch.tensor([1]), report_of(torch.tensor([[0.0, -0.5, 2.0]])), 1.0, True, 1, 1, 100)
    write_rollouts(tmp_path / "rows.parquet", token_columns(batch, [first, second]))
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table["token_ids"].to_pylist() == [[5, 6], [7, 8, 70000], [9]]
    assert table["log_ratio"].to_pylist() == [[-1.0, 0.25], [0.0, -0.5, 2.0], [0.5]]
    assert table.schema.types == [pa.list_(pa.field("element", pa.int32())), pa.list_(pa.field("element", pa.float16()))]


def test_the_command_writes_and_names(tmp_path):
    run = make_run(tmp_path / "run", tokens=False)
    done = forked.realrl("figures", run, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    written = done.stdout.split()
    assert str(tmp_path / "out" / "figure_4.svg") in written
    assert sorted(written) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert done.stderr.count("skipped: figure_") == 2
    failed = forked.realrl("figures", tmp_path / "none", "-o", tmp_path / "out")
    assert failed.returncode == 1 and failed.stderr.startswith("realrl: error:")
