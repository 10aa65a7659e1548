"""The sweep file, what a run folder says, the choice of tuned values, and the study's statistics and tables."""

import csv
import fcntl
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realrl.config import dump_config
from realrl.errors import ConfigError, DataError
from realrl.figures.statistics import holm, mean_of, p_value_of_zero
from realrl.sweep import Progress, load_sweep
from realrl.sweep.outcome import outcome, tuned
from realrl.sweep.processes import Interrupt, run_all
from realrl.sweep.run import RATES, _settled
from realrl.sweep.study import study_tables
from realrl.system.hardware import Rates, Speed

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "recipes" / "study"
HEAD = f'base = "{ROOT}/recipes/tiny.toml"\n'
TUNE = '[tune]\nkey = "optim.lr"\nvalues = [1e-4, 3e-4]\nseeds = [8, 9]\n'


def sweep(tmp_path, text, **extra):
    path = tmp_path / "sweep.toml"
    path.write_text(f'{HEAD}dir = "{tmp_path}/runs"\n{text}')
    return load_sweep(path, **extra)


def test_runs_are_named_ordered_seed_by_seed_and_hold_their_overrides(tmp_path):
    plan = sweep(
        tmp_path,
        "seeds = [3, 1]\n[set]\ntrain.steps = 7\n"
        '[variants.real]\n[variants.soft]\nobjective.tau = 2.0\n[variants."GR PO"]\n"objective.type" = "grpo"\n'
        'objective.kl = { target = "old", coef = 0.5 }\n[grid]\noptim.lr = [1e-4, 2e-3]\n',
    )
    settings = [f"{variant}-lr{rate}" for variant in ("real", "soft", "GR_PO") for rate in ("0.0001", "0.002")]
    runs = plan.final({})
    assert [run.name for run in runs] == [f"{setting}-seed{seed}" for seed in (3, 1) for setting in settings]
    assert list(plan.final_names) == [run.name for run in runs] and plan.tuning == ()
    assert all(run.folder == tmp_path / "runs" / run.name and run.config.train.steps == 7 for run in runs)
    assert [run.config.run.seed for run in runs] == [3] * 6 + [1] * 6
    assert [run.config.optim.lr for run in runs[:6]] == [1e-4, 2e-3] * 3
    assert [run.config.objective.type for run in runs[:6]] == ["real"] * 4 + ["grpo"] * 2
    assert runs[2].config.objective.tau == 2.0 and runs[0].config.objective.tau == 0.5
    # GRPO starts from its own defaults; of its penalty to the reference nothing is left.
    assert (runs[4].config.objective.kl.target, runs[4].config.objective.kl.coef) == ("old", 0.5)


def test_precision_is_decided_once_for_all_runs_of_a_sweep(tmp_path):
    plan = sweep(tmp_path, 'seeds = [0, 1]\n[set]\nmodel.autocast = "auto"\n')
    plan.dir.mkdir(parents=True)
    first, second = plan.final({})
    (settled,) = _settled([first], plan.dir)
    assert settled.config.model.autocast in ("none", "bfloat16") and len(json.loads((plan.dir / RATES).read_text())) == 1
    for faster, slower, chosen in ((2e9, 1e9, "bfloat16"), (1e9, 2e9, "none")):
        # The kept rates decide, not the machine that the sweep goes on.
        rates = Rates("cpu", 1, Speed(slower, slower), Speed(faster, faster))
        (plan.dir / RATES).write_text(json.dumps({"tiny-adder on auto": asdict(rates)}))
        assert [run.config.model.autocast for run in _settled([first, second], plan.dir)] == [chosen, chosen]
    (plan.dir / RATES).write_text('{"tiny-adder on auto": {"device": "cpu"}}')
    assert _settled([first], plan.dir)[0].config.model.autocast in ("none", "bfloat16")


def test_runs_that_name_their_precision_measure_nothing(tmp_path):
    plan = sweep(tmp_path, "")
    plan.dir.mkdir(parents=True)
    runs = list(plan.final({}))
    assert _settled(runs, plan.dir) == runs and not (plan.dir / RATES).exists()


def test_a_grid_of_keys_with_one_last_word_has_whole_names(tmp_path):
    plan = sweep(tmp_path, '[grid]\nsampling.dtype = ["same"]\nmodel.dtype = ["float32", "bfloat16"]\n')
    assert list(plan.final_names) == [f"sampling.dtypesame-model.dtype{name}-seed0" for name in ("float32", "bfloat16")]


@pytest.mark.parametrize(
    "text, message",
    [
        ("sedes = [1]\n", "unknown key sedes; did you mean seeds?"),
        ('[tune]\nkey = "optim.lr"\nvalue = [1]\nseeds = [0]\n', "unknown key tune.value; did you mean values?"),
        ("[variants.a]\noptim.lrr = 1\n", "run a-seed0: .*did you mean optim.lr?"),
        ("[grid]\noptim.lrr = [1]\n", "did you mean optim.lr?"),
        ("[grid]\noptim.lr = 1e-4\n", "grid.optim.lr = 0.0001 must be a list"),
        (f"[grid]\nobjective.tau = [1.0]\n{TUNE}", "grid and tune cannot be used together"),
        (f'{TUNE}[variants.real]\n[variants.b]\ntuned_as = "rael"\n', "did you mean real?"),
        ('reference = "rael"\n[variants.real]\n', "did you mean real?"),
        ('[variants."a b"]\n[variants.a_b]\nobjective.tau = 1.0\n', "two settings have the same folder name a_b"),
        ("seeds = [1, 1]\n[variants.a]\n", "share the folder a-seed1"),
        ("[grid]\noptim.lr = [1e-4, 1e-4]\n", "two settings have the same folder name lr0.0001"),
        ("seeds = []\n", "seeds = "),
        ("variants = 'nowhere.toml'\n", "no file of variants"),
        (f"{TUNE}[set]\ndata.eval = []\n", "data.eval is empty"),
        ("[variants.a]\ntrain.mini_batch_prompts = 3\n", "does not divide"),
        ("[variants\n", "is not valid TOML"),
    ],
)
def test_a_wrong_sweep_file_is_an_error_that_says_what_to_do(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace("[", r"\[")):
        sweep(tmp_path, text)
    assert not (tmp_path / "runs").exists()


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(ConfigError, match=r"did you mean mine.toml\?"):
        load_sweep(tmp_path / "main.toml")
    with pytest.raises(ConfigError, match="missing key base; missing key dir"):
        load_sweep(tmp_path / "mine.toml")


def test_variants_may_stand_in_a_file_of_their_own(tmp_path):
    (tmp_path / "settings.toml").write_text("[a]\nobjective.tau = 0.1\n[b]\n")
    assert list(sweep(tmp_path, 'variants = "settings.toml"\n').final_names) == ["a-seed0", "b-seed0"]


def write_run(run, accuracies=(), *, steps=None, checkpoint=True, problems=("p", "q"), right=(True, False), rewards=None):
    """A run folder as `realrl train` leaves it: `accuracies` by step, problem → right at the last."""
    steps = run.config.train.steps if steps is None else steps
    rewards = rewards or [0.5] * steps
    run.folder.mkdir(parents=True)
    (run.folder / "config.toml").write_text(dump_config(run.config))
    records = [
        {"step": step + 1, "reward/mean": rewards[step], "policy/entropy": step / 100, "time/step_s": 2.0}
        for step in range(steps)
    ]
    records += [{"step": step, "eval/column_addition/sampled/accuracy": value} for step, value in accuracies]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if checkpoint:
        folder = run.folder / "checkpoints" / f"step_{steps}"
        folder.mkdir(parents=True)
        (folder / "trainer.json").write_text("{}")
    (run.folder / "eval").mkdir()
    write_evaluation(run, "column_addition", problems, right)


def write_evaluation(run, held_out, problems, right):
    rows = [
        {"id": name, "problem": f"{name}?", "status": "correct" if ok else "wrong"}
        for name, ok in zip(problems, right, strict=True)
    ]
    path = run.folder / "eval" / f"{held_out}_sampled_step_{run.config.train.steps:06}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_the_state_of_a_run_is_read_from_its_folder(tmp_path):
    plan = sweep(tmp_path, "seeds = [0, 1, 2, 3, 4, 5]\n[set]\ntrain.steps = 4\n[variants.a]\n")
    done, half, unsaved, unevaluated, other, new = plan.final({})
    write_run(done, [(0, 0.1), (4, 0.75)])
    write_run(half, [(0, 0.1), (4, 0.75)], steps=3)
    write_run(unsaved, [(4, 0.5)], checkpoint=False)
    write_run(unevaluated, [(0, 0.1)])
    write_run(other, [(4, 0.5)])
    config = other.folder / "config.toml"
    config.write_text(config.read_text().replace("tau = 0.5", "tau = 0.7").replace("examples = 3", "examples = 1"))
    states = [outcome(run, checkpoints=True) for run in (done, half, unsaved, unevaluated, other, new)]
    assert [found.state for found in states] == ["finished", "unfinished", "unfinished", "unfinished", "refused", "new"]
    assert (states[0].accuracy, states[0].step, states[0].seconds) == (0.75, 4, 8.0)
    assert (states[1].accuracy, states[1].step) == (None, 3)
    assert outcome(unsaved, checkpoints=False).state == "finished"
    assert "objective.tau = 0.7 (the sweep has 0.5)" in states[4].detail and f"remove {other.folder}" in states[4].detail
    # What leaves no trace in the weights may differ.
    config.write_text(config.read_text().replace("tau = 0.7", "tau = 0.5"))
    assert outcome(other, checkpoints=True).state == "finished"
    # A line torn by a crash is not read; a folder of something else is left alone.
    metrics = done.folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-3])
    assert outcome(done, checkpoints=True).state == "unfinished"
    new.folder.mkdir()
    (new.folder / "precious.txt").write_text("mine")
    assert "not a run folder" in outcome(new, checkpoints=True).detail


def test_the_best_mean_is_chosen_once_all_runs_have_ended(tmp_path):
    plan = sweep(tmp_path, f'{TUNE}[variants.a]\n[variants.b]\n[variants.c]\ntuned_as = "b"\nobjective.tau = 2.0\n')
    names = [run.name for run in plan.tuning]
    assert names == [
        f"tune-{variant}-lr{rate}-seed{seed}" for seed in (8, 9) for variant in "ab" for rate in ("0.0001", "0.0003")
    ]
    accuracies = {
        "tune-a-lr0.0001-seed8": 0.5,
        "tune-a-lr0.0001-seed9": 0.5,
        "tune-a-lr0.0003-seed8": 0.9,
        "tune-a-lr0.0003-seed9": 0.2,
        "tune-b-lr0.0001-seed8": 0.9,
        "tune-b-lr0.0003-seed8": 0.4,
        "tune-b-lr0.0003-seed9": 0.4,
    }

    def chosen(ended):
        return {cell.variant: cell.value for cell in tuned(plan, accuracies, ended) if cell.chosen}

    # (0.9 + 0.2) / 2 > 0.5. Of b the run of 1e-4 with seed 9 failed, so 1e-4 is out although seed 8 was better.
    assert chosen(names) == {"a": "0.0003", "b": "0.0003"}
    assert chosen([name for name in names if name != "tune-b-lr0.0001-seed9"]) == {"a": "0.0003"}
    rates = {run.name: run.config.optim.lr for run in plan.final(chosen(names))}
    assert rates == {"a-seed0": 3e-4, "b-seed0": 3e-4, "c-seed0": 3e-4}
    assert [run.name for run in plan.final({"a": "0.0001"})] == ["a-seed0"]
    rows = {row["name"]: row["status"] for row in Progress(plan).rows()}
    assert len(rows) == 8 + 3 and rows["c-seed0"] == "waiting" and rows[names[0]] == "not run"


def test_a_run_that_another_process_has_is_left_alone(tmp_path):
    plan = sweep(tmp_path, "[variants.a]\n")
    busy, asked = [], []
    with (tmp_path / "a-seed0.log").open("ab") as log, Interrupt() as interrupt:
        fcntl.flock(log, fcntl.LOCK_SH)
        run_all(
            plan.final({}),
            1,
            tmp_path,
            interrupt,
            still_to_do=asked.append,
            on_start=asked.append,
            on_busy=busy.append,
            on_end=print,
        )
    assert [run.name for run in busy] == ["a-seed0"] and not asked


@pytest.mark.parametrize("degrees, quantile", [(1, 12.7062), (2, 4.3027), (4, 2.7764), (7, 2.3646), (20, 2.0860)])
def test_student_s_t_is_that_of_the_tables(degrees, quantile):
    # Values whose mean is exactly `quantile` standard errors from 0: the interval ends there, and p is 0.05.
    spread = [-1.0, 1.0] + [0.0] * (degrees - 1)
    error = math.sqrt(2 / degrees / (degrees + 1))
    values = [value + quantile * error for value in spread]
    found = mean_of(values)
    assert found.low == pytest.approx(0, abs=1e-4 * quantile) and found.high == pytest.approx(2 * quantile * error, rel=1e-4)
    assert p_value_of_zero(values) == pytest.approx(0.05, rel=1e-3)


def test_p_values_in_closed_form():
    # ν = 2: P(|T| > t) = 1 − t/√(2 + t²); far in the tail too.
    for shift in (0.1, 1.0, 30.0):
        t = shift / (1 / math.sqrt(3))
        assert p_value_of_zero([shift - 1, shift, shift + 1]) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-3)
    assert p_value_of_zero([0.0, 0.0]) == 1 and p_value_of_zero([0.5, 0.5]) == 0
    assert p_value_of_zero([0.5]) is None and mean_of([0.5]).low is None


def test_holm():
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_tables_of_a_study(tmp_path):
    plan = sweep(tmp_path, 'seeds = [0, 1, 2]\nreference = "real"\n[set]\ntrain.steps = 2\n[variants.real]\n[variants.grpo]\n')
    with pytest.raises(DataError, match="no run of .* is finished yet"):
        study_tables(Progress(plan), tmp_path / "tables")
    final = {run.name: run for run in plan.final({})}
    # Right answers of two problems; GRPO has no third seed yet, so its difference is over two.
    cases = {"real-seed0": (1, 1), "real-seed1": (1, 0), "real-seed2": (0, 0), "grpo-seed0": (1, 0), "grpo-seed1": (1, 0)}
    for name, right in cases.items():
        write_run(final[name], [(0, 0.25), (2, sum(right) / 2)], right=map(bool, right), rewards=[0.25, 0.75])
    text = study_tables(Progress(plan), tmp_path / "tables")
    assert "5 of 6 runs are finished" in text and "| real " in text
    rows = {row["setting"]: row for row in csv.DictReader((tmp_path / "tables" / "settings.csv").open())}
    real, grpo = rows["real"], rows["grpo"]
    # n = 3, mean 0.5, deviation 0.5: half-width 4.3027 · 0.5/√3.
    assert float(real["accuracy"]) == 0.5 and float(real["accuracy_high"]) == pytest.approx(
        0.5 + 4.3027 * 0.5 / 3**0.5, rel=1e-4
    )
    assert real["difference"] == "" and real["paper"] == "0.526" and grpo["paper"] == "0.431"
    # Differences −0.5 and 0: mean −0.25, standard error 0.25, so t = 1 and p = 1/2 with one degree of freedom.
    assert float(grpo["difference"]) == -0.25 and grpo["seeds"] == "0 1"
    assert float(grpo["p_value"]) == pytest.approx(0.5, rel=1e-3) == float(grpo["p_holm"])
    assert float(grpo["reward_area"]) == 0.5 and float(grpo["entropy"]) == pytest.approx(0.005)
    runs = {row["name"]: row for row in csv.DictReader((tmp_path / "tables" / "runs.csv").open())}
    assert float(runs["real-seed0"]["accuracy"]) == 1.0 and float(runs["real-seed0"]["accuracy_before"]) == 0.25
    assert json.loads((tmp_path / "tables" / "study.json").read_text())["settings"][1]["p_value"] == pytest.approx(
        0.5, rel=1e-3
    )
    drawn = list(csv.DictReader((tmp_path / "tables" / "figure_5.csv").open()))
    means = {row["recipe"]: float(row["value"]) for row in drawn if row["seed"] == "mean" and "Pass@1" in row["quantity"]}
    assert means == {"real": 0.5, "grpo": 0.5}
    assert {row["recipe"] for row in csv.DictReader((tmp_path / "tables" / "figure_4.csv").open())} == {"real", "grpo"}
    write_run(final["grpo-seed2"], [(2, 0.5)], problems=("p", "r"))
    with pytest.raises(DataError, match="different problems with seed 2: 2 are not in both"):
        study_tables(Progress(plan), tmp_path / "tables")


def test_a_study_of_runs_without_a_held_out_set_is_refused(tmp_path):
    plan = sweep(tmp_path, "[set]\ntrain.steps = 2\ndata.eval = []\n")
    write_run(plan.final({})[0])
    with pytest.raises(DataError, match="run-seed0 has no held-out set"):
        study_tables(Progress(plan), tmp_path / "tables")


def test_a_paired_difference_is_that_of_the_accuracies_whatever_the_sizes_of_the_sets(tmp_path):
    sets = 'data.eval = ["column_addition", "addition"]'
    plan = sweep(
        tmp_path, f'seeds = [0]\nreference = "real"\n[set]\ntrain.steps = 2\n{sets}\n[variants.real]\n[variants.grpo]\n'
    )
    # Of three problems GRPO has one more right, of one problem one fewer: 1/3 − 1 over two sets.
    for run, (one, other) in zip(plan.final({}), [((1, 0, 0), (1,)), ((1, 1, 0), (0,))], strict=True):
        write_run(run, [(2, sum(one) / 3)], problems="abc", right=one)
        write_evaluation(run, "addition", "a", other)
        with (run.folder / "metrics.jsonl").open("a") as file:
            for name, value in (("column_addition/greedy", 0.5), ("addition/sampled", sum(other)), ("addition/greedy", 0.5)):
                file.write(json.dumps({"step": 2, f"eval/{name}/accuracy": value}) + "\n")
    study_tables(Progress(plan), tmp_path / "tables")
    rows = {row["setting"]: row for row in csv.DictReader((tmp_path / "tables" / "settings.csv").open())}
    difference = float(rows["grpo"]["accuracy"]) - float(rows["real"]["accuracy"])
    assert float(rows["grpo"]["difference"]) == pytest.approx((1 / 3 - 1) / 2) == pytest.approx(difference)
    # The same id, and another problem.
    write_evaluation(run, "addition", "a", (1,))
    path = run.folder / "eval" / "addition_sampled_step_000002.parquet"
    pq.write_table(pa.table({"id": ["a"], "problem": ["2 + 2?"], "status": ["correct"]}), path)
    with pytest.raises(DataError, match="different problems with seed 0: 2 are not in both"):
        study_tables(Progress(plan), tmp_path / "tables")


@pytest.mark.parametrize(
    "name, tuning, seeds", [("tiny", 6 * 4 * 2, 5), ("smollm2_largest", 6 * 3, 5), ("smollm2_arithmetic", 6 * 3, 5)]
)
def test_the_study_compares_eleven_settings_at_equal_compute(name, tuning, seeds):
    plan = load_sweep(STUDY / f"{name}.toml")
    assert (STUDY / f"{name}.toml").read_text().startswith("# ")
    assert len(plan.tuning) == tuning and len(plan.settings) == 11 and len(plan.final_names) == 11 * seeds
    assert not {run.seed for run in plan.tuning} & set(plan.file.seeds) and plan.file.reference == "real"
    rates = {variant: "0.0001" for variant in ("real", "real_no_anchor", "bce", "grpo", "dapo", "gspo")}
    runs = plan.final(rates)
    assert len(runs) == 11 * seeds and {run.config.optim.lr for run in runs} == {1e-4}
    work = {
        (
            config.train.steps,
            config.train.prompts_per_step,
            config.updates_per_step,
            config.sampling.group_size,
            config.data.eval,
        )
        for config in (run.config for run in (*plan.tuning, *runs))
    }
    assert len(work) == 1 and work.pop()[2] == 4
    objectives: dict[str, Any] = {run.setting: run.config.objective for run in runs}
    assert (objectives["real"].tau, objectives["real_tau_0.1"].tau, objectives["real_tau_1.0"].tau) == (0.5, 0.1, 1.0)
    assert objectives["real"].anchor and not objectives["real_no_anchor"].anchor
    kl = {name: (objective.kl.target, objective.kl.coef) for name, objective in objectives.items()}
    assert kl["real_kl_ref"] == ("ref", 0.001) and kl["real_kl_old"] == ("old", 0.001) and kl["real"] == ("none", 0.0)
    assert (objectives["grpo"].clip, objectives["grpo_bidirectional"].clip) == ("one_sided", "bidirectional")
    assert kl["grpo"] == kl["grpo_bidirectional"] == ("ref", 0.001) and objectives["bce"].tau == 0.5


def test_only_has_to_fit_a_run(tmp_path):
    plan = sweep(tmp_path, '[variants.real]\n[variants.grpo]\nobjective.type = "grpo"\n')
    assert [row["name"] for row in Progress(plan, "grpo-*").rows()] == ["grpo-seed0"]
    with pytest.raises(ConfigError, match=r"--only 'gspo-\*' matches no run of .*; it has real-seed0, grpo-seed0"):
        Progress(plan, "gspo-*")
