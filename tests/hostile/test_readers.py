"""Every file that a command reads may be damaged or a stranger's: it works, or one line says what is wrong.

REALRL_CAMPAIGN=1 tries thousands of damaged files of each kind."""

import json
import math
import os
import shutil
import tomllib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import mutations, refused_or_fine, run
from made_runs import make_run, rollout
from safetensors.torch import load_file, save_file

from realrl.config import dump_config, load_config, parse_config
from realrl.data import load_problems
from realrl.errors import ConfigError, DataError, RealrlError
from realrl.eval.store import Generation, Store
from realrl.report.page import render_page
from realrl.report.report import report_data
from realrl.rewards.grade_file import grade_file
from realrl.rundir.alarms import Alarms
from realrl.rundir.closing import closing_lines
from realrl.rundir.metrics import read_records
from realrl.rundir.rollouts import write_rollouts
from realrl.sweep import load_sweep
from realrl.training.debug import BadUpdate, replay, save_bad_update
from realrl.types import Batch, Problem, Prompt

CAMPAIGN = bool(os.environ.get("REALRL_CAMPAIGN"))
COUNT = 3000 if CAMPAIGN else 60

RECIPE = b"""[run]
dir = "runs/x"
seed = 3
[model]
path = "tiny-adder"
[data]
train = "column_addition"
eval = ["column_addition", "aime24"]
task = { digits = 2 }
filter = { level = { min = 1.5, max = 3 } }
examples = [{ problem = "1+1=", response = "2" }]
[objective]
type = "real"
tau = 0.5
kl = { target = "none", coef = 0.0 }
[optim]
lr = 2e-6
betas = [0.9, 0.99]
"""
SWEEP = b"""base = "recipe.toml"
dir = "runs/sweep"
seeds = [0, 1]
reference = "a"
[set]
"train.steps" = 2
[variants.a]
"optim.lr" = 1e-6
[variants.b]
objective = { type = "grpo" }
"""
PROBLEMS = b"".join(
    json.dumps({"id": f"p{n}", "problem": f"What is {n}+1?", "answer": str(n + 1), "also_accept": [f"{n + 1}.0"]}).encode()
    + b"\n"
    for n in range(4)
)


def each(data, seed=0, count=COUNT):
    yield from enumerate(mutations(data, seed, count))


def test_recipes(tmp_path):
    path = tmp_path / "recipe.toml"
    for _, damaged in each(RECIPE):
        path.write_bytes(damaged)
        try:
            config = load_config(path)
        except ConfigError as error:
            assert len(str(error)) < 20_000
            continue
        # What is accepted can be saved with the run and read again.
        assert dump_config(parse_config(tomllib.loads(dump_config(config)))) == dump_config(config)


@pytest.mark.parametrize(
    "value", ["nan", "inf", "1e400", "9" * 30, "9" * 5000, "[" * 3000, "{ a = 1 }", "1979-05-27", "'''", "\ud800"]
)
@pytest.mark.parametrize(
    "key", ["run.seed", "run.threads", "optim.lr", "reward.timeout_s", "train.steps", "data.task.x", "run.dir", "objective.tau"]
)
def test_overrides(tmp_path, key, value):
    (tmp_path / "recipe.toml").write_bytes(RECIPE)
    try:
        load_config(tmp_path / "recipe.toml", {key: value})
    except ConfigError as error:
        assert len(str(error)) < 20_000


def test_sweep_files(tmp_path):
    (tmp_path / "recipe.toml").write_bytes(RECIPE)
    path = tmp_path / "sweep.toml"
    for _, damaged in each(SWEEP, count=COUNT // 2):
        path.write_bytes(damaged)
        try:
            load_sweep(path)
        except ConfigError:
            continue
    path.write_text(
        'base = "recipe.toml"\ndir = "d"\n[grid]\n' + "".join(f'"train.k{n}" = {list(range(100))}\n' for n in range(9))
    )
    with pytest.raises(ConfigError, match="more than 10000 points"):
        load_sweep(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_problem_files(tmp_path, suffix):
    whole = PROBLEMS if suffix == ".jsonl" else b'problem,answer,id\n"What, is\n1+1?",2,a\nWhat is 2+2?,4,b\n'
    path = tmp_path / f"problems{suffix}"
    for _, damaged in each(whole):
        path.write_bytes(damaged)
        try:
            loaded = load_problems(str(path))
        except DataError:
            continue
        assert all(isinstance(text, str) and text for problem in loaded.problems for text in problem.golds)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"problem": "p", "answer": NaN}', "the answer is nan"),
        ('{"problem": "p", "answer": Infinity}', "the answer is inf"),
        ('{"problem": "p", "answer": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"problem": "p", "answer": ' + "[" * 100_000, "not valid JSON"),
        ('{"problem": "p", "answer": "1", "also_accept": "12"}', "also_accept is a str"),
        ('{"problem": "p", "answer": "1", "also_accept": 12}', "also_accept is a int"),
        ('{"problem": "p", "answer": {"a": 1}}', "the answer is a dict"),
        ('{"problem": ["p"], "answer": "1"}', "not text"),
        ('{"problem": "p \\ud800", "answer": "1"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_counted_and_says_why(tmp_path, record, said):
    path = tmp_path / "problems.jsonl"
    path.write_text('{"problem": "good", "answer": "1"}\n' + record + "\n")
    loaded = load_problems(str(path))
    assert len(loaded.problems) == 1 and said in loaded.bad_examples[0]


def test_parquet_files(tmp_path):
    path, source = tmp_path / "problems.parquet", tmp_path / "source.parquet"
    rows = [{"problem": f"Was ist {n}? ä", "answer": str(n), "id": f"p{n}"} for n in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), source, compression="none")
    for _, damaged in each(source.read_bytes()):
        path.write_bytes(damaged)
        try:
            load_problems(str(path))
        except DataError:
            continue
    for column in (
        pa.array([b"\xff\xfe"]).cast(pa.binary()),
        pa.array([{"a": 1}]),
        pa.array([2**62]),
        pa.array([None], pa.null()),
    ):
        pq.write_table(pa.table({"problem": pa.array(["p"]), "answer": column}), path)
        try:
            load_problems(str(path))
        except DataError:
            continue


def test_files_to_grade(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = b'{"response": "It is 2", "answer": "2", "label": true}\n{"response": "3", "answer": ["2", "3"]}\n'
    for _, damaged in each(whole, count=min(COUNT, 300)):
        path.write_bytes(damaged)
        try:
            grade_file(
                str(path),
                reward=parse_config({"model": {"path": "x"}, "data": {"train": "x"}, "reward": {"type": "exact_match"}}).reward,
            )
        except DataError:
            continue
    # A line of JSON may hold characters at which Python's splitlines cuts.
    path.write_text(json.dumps({"response": "a\u2028b\x85 12", "answer": "12"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(grade_file(str(path)).rows) == 1


def test_stored_evaluations(tmp_path):
    """The settings and the generations of a folder that `realrl eval` goes on with, or grades again."""
    folder = tmp_path / "eval"
    settings = {"model": "m", "seed": 0, "data": {}, "benchmarks": {"x": {"problems": 1, "of": 1, "samples": 1}}}
    with Store(folder) as store:
        store.keep_settings(settings)
        store.append("x", [Generation("p", 0, "d", "It is 2", 3, False), Generation("q", 0, "d", "\ud800", None, True)])
        files = [folder / "settings.json", folder / "generations" / "x.jsonl"]
        whole = [file.read_bytes() for file in files]
        for file, data in zip(files, whole, strict=True):
            for _, damaged in each(data, count=COUNT // 2):
                file.write_bytes(damaged)
                try:
                    store.keep_settings(settings)
                    generations = store.load("x").values()
                except DataError:
                    continue
                assert all(isinstance(one.id, str) and isinstance(one.response, str) for one in generations)
            file.write_bytes(data)


def test_run_folders(tmp_path):
    """All that a report reads of a run, each file damaged by itself; a page comes out, or one of our errors."""
    run_folder = make_run(tmp_path / "run", steps=3)
    (run_folder / "alarms.txt").write_text("step 1: ALARM: the gradient is exactly 0\n")
    (run_folder / "environment.json").write_text(
        json.dumps(
            [{"started": 1000.0, "gpus": ["A"], "packages": {"torch": "2"}, "ranks": 1, "commit": "abc", "changed": True}]
        )
    )
    shutil.copy(run_folder / "config.toml", run_folder / "config_until_step_000001.toml")
    names = ["metrics.jsonl", "config.toml", "config_until_step_000001.toml", "alarms.txt", "environment.json"]
    for number, name in enumerate([*names, "rollouts/step_000002.parquet"]):
        file = run_folder / name
        whole = file.read_bytes()
        for _, damaged in each(whole, seed=number, count=1000 if CAMPAIGN else 7 if name.endswith(".parquet") else 12):
            file.write_bytes(damaged)
            try:
                page = render_page(report_data([run_folder]))
            except RealrlError:
                continue
            assert "<html" in page
            assert all(record["kind"] in ("round", "evaluation") for record in read_records(run_folder / "metrics.jsonl")[0])
            assert isinstance(closing_lines(run_folder, 1), list)
        file.write_bytes(whole)


@pytest.mark.parametrize(
    "record",
    [
        {"step": 10**300, "x": 1},
        {"step": 1, "x": 10**400},
        {"step": True, "eval/accuracy": 0.5},
        {"step": 1, "eval/a/accuracy": 0.5, "eval/../../../../etc/x/accuracy": 1},
        {"step": 1, "eval/" + "x" * 5000 + "/sampled/accuracy": 0.5},
        {"step": 1, "": 1, "\x00": 2, "\ud800": 3, "$\\frac$": 4},
        {"step": -5, "time": -1e300, "reward/mean": 1e-320},
    ],
)
def test_odd_records_of_metrics(tmp_path, record):
    run_folder = make_run(tmp_path / "run", steps=2, rollouts=0)
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n{}\n")
    render_page(report_data([run_folder]))
    closing_lines(run_folder, 1)
    alarms = Alarms()
    for found in read_records(run_folder / "metrics.jsonl")[0]:
        alarms.check(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"score": "high"},
        {"score": {"a": 1}, "weight": [1.0]},
        {"group": "a"},
        {"prompt": 3},
        {"response": b"\xff"},
        {"token_ids": [-1, 2**40], "log_ratio": [0.1, 0.2]},
        {"token_ids": "x", "log_ratio": 3},
        {"log_ratio": [["x"]]},
        {"score": None, "weight": None, "verdict": None, "reason": None},
        {"prompt": "\ud800", "response": "\ud800"},
    ],
    ids=str,
)
def test_columns_of_other_types_are_left_out(tmp_path, changes):
    run_folder = make_run(tmp_path / "run", steps=2, rows=lambda step: [rollout(step, group) | changes for group in range(3)])
    render_page(report_data([run_folder]))


@pytest.mark.parametrize(
    "text", ["a." * 3000 + "a = 1", "a = " + "[" * 3000, "a = " + "9" * 5000, "a = inf", "a = 1e999", "a = '\0'"]
)
def test_toml_that_is_no_recipe_is_refused_wherever_it_is_read(tmp_path, text):
    folder = make_run(tmp_path / "run", steps=1, rollouts=0)
    for path in (folder / "config.toml", tmp_path / "sweep.toml", tmp_path / "recipe.toml"):
        path.write_text(text)
    with pytest.raises(DataError, match="config.toml cannot be read"):
        report_data([folder])
    for load in (load_sweep, load_config):
        with pytest.raises(ConfigError, match="TOML|nested deeper|numbers must be finite"):
            load(tmp_path / ("sweep.toml" if load is load_sweep else "recipe.toml"))


def test_a_recipe_of_a_run_may_hold_anything(tmp_path):
    """A dollar sign starts no formula in a picture; values of any type are shown as they stand."""
    folders = [make_run(tmp_path / name, steps=2, rollouts=0, seed=1) for name in ("a", "b")]
    for folder, tau in zip(folders, ('"$\\\\frac{$"', "1979-05-27"), strict=True):
        text = (folder / "config.toml").read_text()
        text = (
            text.replace("tau = 0.5", f"tau = {tau}")
            .replace("steps = 2", 'steps = "two"')
            .replace('eval = [\n    "column_addition",\n]', "eval = [1, [2]]")
        )
        (folder / "config.toml").write_text(text)
    page = report_data(folders)
    assert len(page["series"]) == 2 and page["series"][0]["runs"][0]["total"] == 0


def test_results_of_evaluations(tmp_path):
    folder = tmp_path / "eval"
    folder.mkdir()
    figures = {"accuracy": 0.5, "interval": [0.4, 0.6], "problems": 3, "samples_each": 2}
    whole = json.dumps({"model": "m", "results": {"a": figures, "b": figures}, "average": figures}).encode()
    for _, damaged in each(whole, count=min(COUNT, 500)):
        (folder / "results.json").write_bytes(damaged)
        try:
            render_page(report_data([folder]))
        except RealrlError:
            continue


def test_saved_rows_have_the_columns_of_all_and_text_of_any_kind(tmp_path):
    rows = [{"a": 1, "text": "\ud800 half"}, {"a": 2, "b": "later", "text": None}]
    write_rollouts(tmp_path / "rows.parquet", rows)
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == [
        {"a": 1, "text": "? half", "b": None},
        {"a": 2, "text": None, "b": "later"},
    ]


@pytest.fixture
def model_folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", lambda data: data[:100]),
        ("model.safetensors", lambda data: data[: len(data) // 2]),
        ("model.safetensors", lambda data: b"\xff" * 8 + data[8:]),
        ("model.safetensors", lambda data: (2**62).to_bytes(8, "little") + data[8:]),
        ("model.safetensors", lambda data: data.replace(b"model.layers.0.mlp.up_proj", b"model.layers.9.mlp.up_proj")),
        ("model.safetensors", lambda data: b""),
        ("config.json", lambda data: b"[1]"),
        ("config.json", lambda data: b"{"),
        ("config.json", lambda data: b"[" * 100_000),
        ("config.json", lambda data: data.replace(b'"hidden_size": 32', b'"hidden_size": "x"')),
        ("config.json", lambda data: data.replace(b'"hidden_size": 32', b'"hidden_size": -1')),
        ("config.json", lambda data: data.replace(b'"model_type": "qwen2"', b'"model_type": ["qwen2"]')),
        ("tokenizer.json", lambda data: data[: len(data) // 2]),
        ("tokenizer.json", lambda data: b"null"),
    ],
)
def test_model_folders(model_folder, file, damage, capsys, monkeypatch):
    """Through the library, as the command line does it: a damaged model is one line, and never one of random weights."""
    from realrl.models import load_model, load_tokenizer

    path = model_folder / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_tokenizer(str(model_folder))
        load_model(str(model_folder), dtype=torch.float32)


def test_kept_mini_batches(tmp_path, tiny_folder):
    """What `realrl debug-batch` is given, and what stands beside it."""
    (tmp_path / "config.toml").write_text(
        dump_config(parse_config({"model": {"path": str(tiny_folder)}, "data": {"train": "column_addition"}}))
    )
    prompts = [Prompt(Problem(str(n), "1+1=", "2"), "1+1=", (5, 6, 7)) for n in range(2)]
    ones = torch.ones(4, 3)
    batch = Batch(
        prompts=prompts,
        response_ids=ones.long(),
        loss_mask=ones.bool(),
        group_ids=torch.tensor([0, 0, 1, 1]),
        rewards=torch.tensor([1.0, 0, 1, 0]),
        levels=torch.tensor([1, 0, 1, 0]),
        logprobs_sampler=-ones,
    )
    bad = BadUpdate(batch, None, None, -ones, math.nan, 1.0, [], [])
    (tmp_path / "debug").mkdir()
    file = save_bad_update(tmp_path / "debug" / "step_000001_update_0.json", 1, 0, bad)
    assert file
    twin = file.with_suffix(".safetensors")
    assert "again, with" in replay(file)
    for path in (file, twin):
        whole, refused = path.read_bytes(), 0
        for _, damaged in each(whole, count=COUNT // 2):
            path.write_bytes(damaged)
            try:
                replay(file)
            except RealrlError:
                refused += 1
        assert refused > COUNT // 6
        path.write_bytes(whole)
    tensors = load_file(twin)
    for name, value in {"response_ids": 10**6, "group_ids": 7, "rewards": 0.5}.items():
        save_file(tensors | {name: tensors[name] + value}, twin)
        with pytest.raises(DataError, match="cannot be computed with .*do they belong together"):
            replay(file)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, '{"peft_type": "LORA"}', '{"base_model_name_or_path": "."}'])
def test_adapters(tmp_path, text, monkeypatch):
    from realrl.models import weights_fingerprint

    (tmp_path / "adapter_config.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        weights_fingerprint(str(tmp_path))


def test_the_command_line_says_it_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_bytes(b"[" * 5000)
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\n[" + b"[" * 5000)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_bytes(b"\x00")
    long = "x" * 5000
    for words in (
        ["train", "bad.toml"],
        ["show-config", "bad.toml"],
        ["show-config", long],
        ["sweep", "bad.toml"],
        ["grade", "bad.jsonl"],
        ["grade", long],
        ["data", "show", "bad.jsonl"],
        ["data", "show", "bad.parquet"],
        ["data", "show", long],
        ["data", "show", "~nobody/x.jsonl"],
        ["data", "check", "bad.jsonl"],
        ["report", "run"],
        ["report", long],
        ["figures", "run", "-o", "f"],
        ["eval", "compare", "run", "run"],
        ["eval", "--regrade", "run"],
        ["eval", "~nobody/model", "-b", "addition"],
        ["eval", "no model", "-b", "addition", "-o", long],
        ["eval", "tiny", "-b", "addition", "--temperature", "inf"],
    ):
        result = run(capsys, monkeypatch, *words)
        refused_or_fine(result)
        assert result[0] == 1, words
        assert result[2].startswith("realrl: error: ") and result[2].count("\n") == 1, result


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # Past these a queue's clock, the machine's threads, its memory, or float32 end.
        ("--timeout inf", "--timeout"),
        ("--concurrency 1000000", "--concurrency"),
        ("--samples 1000000000", "--samples"),
        ("--max-new-tokens 1000000000000", "--max-new-tokens"),
        ("--temperature 1e-30", "--temperature 1e-30 is not allowed; give 0, or at least 0.01"),
    ],
)
def test_numbers_that_no_evaluation_can_have_are_refused(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, monkeypatch, "eval", "tiny", "-b", "addition", "--samples", "1", *words.split())
    assert status in (1, 2) and said in err and not list(tmp_path.iterdir())
