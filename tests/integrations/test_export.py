"""What an export says without its engine: every key of a recipe is accounted for, refusals, batch sizes, files."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from realrl.config import Config, load_config, parse_config
from realrl.data import render_prompt
from realrl.errors import ConfigError
from realrl.integrations.export import Machines, export_trl, export_verl, trl, verl
from realrl.integrations.export.common import given
from realrl.models.adder import character_tokenizer
from realrl.objectives import BaseObjectiveConfig
from realrl.types import Problem

ROOT = Path(__file__).parents[2]
# recipes/study holds sweeps.
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.toml") if path.parent.name not in ("study", "base"))
TINY = ROOT / "recipes" / "tiny.toml"
PAPER = ROOT / "recipes" / "paper" / "real_1.5b_deepscaler.toml"
ONE = Machines(gpus_per_node=1)


def recipe(path=TINY, **overrides):
    return load_config(path, {key.replace("__", "."): str(value) for key, value in overrides.items()})


ALL_KEYS = {
    f"{section}.{key}"
    for section, info in Config.model_fields.items()
    for key in (info.annotation if isinstance(info.annotation, type) else BaseObjectiveConfig).model_fields
}


@pytest.mark.parametrize("table", [trl.TABLE, verl.TABLE], ids=["trl", "verl"])
def test_every_key_of_a_recipe_has_a_row(table):
    rowless = {key for key in ALL_KEYS if key not in table and f"{key.split('.')[0]}.*" not in table}
    assert not rowless
    assert {key for key in table if not key.endswith(".*")} <= ALL_KEYS


@pytest.mark.parametrize("table", [trl.TABLE, verl.TABLE], ids=["trl", "verl"])
def test_every_row_says_what_becomes_of_its_key(table):
    for key, row in table.items():
        assert row.options or row.elsewhere or row.note or row.refused, key


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_becomes_a_script_that_parses(path):
    config = load_config(path)
    ast.parse(export_trl(config, Machines(gpus_per_node=4)).script)
    script = export_verl(config, Machines(gpus_per_node=4)).script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


# A longest sequence has 1,024 + 8,192 = 9,216 tokens; 32 prompts × 8 rollouts make an optimizer step.
@pytest.mark.parametrize(
    ("budget", "processes", "per_device", "accumulation"),
    [(32768, 8, 2, 16), (73728, 8, 8, 4), (150000, 8, 16, 2), (10**6, 8, 32, 1), (9216, 32, 1, 8), (100, 1, 1, 256)],
)
def test_micro_batches_fit_the_budget_and_hold_whole_groups_where_they_can(budget, processes, per_device, accumulation):
    batches = trl.plan_batches(recipe(PAPER, train__micro_batch_tokens=budget), processes)
    assert (batches.per_device, batches.accumulation, batches.updates) == (per_device, accumulation, 4)
    assert batches.steps_per_generation == 4 * accumulation
    assert processes * per_device * accumulation == 32 * 8


def test_a_smaller_micro_batch_of_whole_groups_goes_before_a_larger_one_of_torn_groups():
    # 13 sequences of 1,024 + 48 tokens fit, and 12 would divide the 24 × 8 rollouts.
    batches = trl.plan_batches(
        recipe(train__prompts_per_step=24, train__mini_batch_prompts=24, train__micro_batch_tokens=13 * 1072), 1
    )
    assert (batches.per_device, batches.accumulation) == (8, 24)


@pytest.mark.parametrize(
    ("export", "machines", "overrides", "remedy"),
    [
        (export_trl, Machines(3), {}, "[1, 2, 4, 8, 16, 32, 64, 128]"),
        (export_trl, Machines(4, 8), {"train__mini_batch_prompts": 8}, "[1, 2, 4, 8]"),
        (export_trl, ONE, {"sampling__steps_ahead": 1}, "sampling.steps_ahead = 0"),
        (export_trl, ONE, {"sampling__importance_cap": 2.0}, "sampling.engine = 'vllm'"),
        (export_trl, ONE, {"sampling__group_size": 1}, "at least 2"),
        (export_verl, ONE, {"sampling__importance_cap": 2.0}, "sampling.importance_cap = 0"),
        (export_verl, ONE, {"optim__schedule": "linear"}, "optim.schedule = 'cosine'"),
        (export_verl, ONE, {"optim__type": "adamw_8bit"}, "optim.type = 'adamw'"),
        (export_verl, ONE, {"model__quantize": "4bit", "model__lora": "{ rank = 4 }"}, "model.quantize = 'none'"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_with_the_remedy(export, machines, overrides, remedy):
    with pytest.raises(ConfigError) as refused:
        export(recipe(**overrides), machines)
    assert remedy in str(refused.value)


@pytest.mark.parametrize("export", [export_trl, export_verl])
def test_all_faults_are_listed_at_once(export):
    with pytest.raises(ConfigError) as refused:
        export(recipe(sampling__importance_cap=2.0, sampling__group_size=1), ONE)
    assert str(refused.value).count("\n- ") == 2


@pytest.mark.parametrize("export", [export_trl, export_verl])
def test_a_key_without_a_counterpart_is_named_in_the_script_where_it_is_set(export):
    quiet, loud = (export(recipe(**more), ONE) for more in ({}, {"train__layout": "packed", "log__figure": "false"}))
    assert "train.layout" not in quiet.script
    assert "train.layout = 'packed'" in loud.script
    assert not any("log.figure" in note for note in loud.notes)


def test_an_adapter_without_its_base_model_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    for export in (export_trl, export_verl):
        with pytest.raises(ConfigError, match="merge"):
            export(recipe(model__path=tmp_path), ONE)


def test_the_objective_goes_over_as_the_recipe_has_it():
    config = recipe(PAPER, objective__tau=0.25)
    table = {"type": "real", "tau": 0.25, "anchor": True, "degenerate_groups": "skip", "kl": {"target": "none", "coef": 0.0}}
    assert given(config.objective) == table
    assert '"tau": 0.25' in export_trl(config, ONE).script
    assert "+algorithm.real.tau=0.25 " in export_verl(config, ONE).script


def test_an_objective_of_one_s_own_goes_over_with_its_keys(tmp_path, monkeypatch):
    (tmp_path / "gap_loss.py").write_text(
        "import realrl\n"
        "class Gap(realrl.ScoreObjective):\n"
        "    width: float = 1.0\n"
        "    def loss_from_scores(self, scores, rewards, groups):\n"
        "        return (scores * self.width).sum()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = recipe(objective__type="gap_loss:Gap", objective__width=0.25)
    assert 'objective={"type": "gap_loss:Gap", "width": 0.25},' in export_trl(config, ONE).script
    script = export_verl(config, ONE).script
    assert "+algorithm.real.type=gap_loss:Gap " in script and "+algorithm.real.width=0.25 " in script
    where = "objective.type = 'gap_loss:Gap': put the module gap_loss beside the script or on PYTHONPATH"
    assert all(where in export(config, ONE).notes for export in (export_trl, export_verl))


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (1, "--num_processes 8 --multi_gpu --num_machines 1 --mixed_precision bf16"),
        (2, "--num_processes 16 --multi_gpu --num_machines 2 --machine_rank $RANK_OF_NODE --main_process_ip $FIRST_NODE"),
    ],
)
def test_the_launch_line_starts_as_many_processes_as_the_batches_are_for(nodes, words):
    export = export_trl(recipe(PAPER), Machines(8, nodes))
    assert words in export.command
    assert f"PROCESSES = {8 * nodes}\n" in export.script


def test_the_plain_template_gives_the_tokens_of_our_trainer():
    data = recipe(data__system_prompt="1+1=2", data__prompt_suffix="=").data
    tokenizer = character_tokenizer()
    problem = Problem("0", "3+4", "7")
    ours = render_prompt(problem, tokenizer, data).token_ids
    chat = [{"role": "system", "content": "1+1=2"}, {"role": "user", "content": "3+4="}]
    tokenizer.chat_template = verl._PLAIN_TEMPLATE
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert tuple(tokenizer.encode(text, add_special_tokens=False)) == ours


def test_verl_data_has_the_golds_where_verl_looks_for_them(tmp_path):
    import pyarrow.parquet as pq

    (tmp_path / "set.jsonl").write_text('{"problem": "a", "answer": "7"}\n{"problem": "b", "answer": ["1/2", "0.5"]}\n')
    config = recipe(data__train=tmp_path / "set.jsonl", data__eval="[]", data__prompt_suffix="?")
    export_verl(config, ONE).write(tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": text}] for text in ("a?", "b?")]
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["7", '["1/2", "0.5"]']
    assert {row["reward_model"]["style"] for row in rows} == {"rule"}
    assert [row["extra_info"]["index"] for row in rows] == [0, 1]
    assert {row["data_source"] for row in rows} == {str(tmp_path / "set.jsonl")}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.parquet", "train.sh"]


def test_no_text_of_a_recipe_is_run_by_the_scripts(tiny_folder, tmp_path):
    model = tmp_path / "model\ntouch title #"
    shutil.copytree(tiny_folder, model)
    run = "runs/$HERE$(touch a)`touch b`'; touch c; '\"; touch d; \"\\"
    document = load_config(TINY).model_dump(mode="json", exclude_none=True)
    document |= {"run": {"dir": run}, "model": {"path": str(model), "lora": {"targets": "$HERE$(touch e)"}}}
    config = parse_config(document)
    # A launcher that keeps what it is given.
    (tmp_path / "python").write_text(f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv, open('given', 'w'))\n")
    (tmp_path / "python").chmod(0o755)
    here = tmp_path / "out"
    here.mkdir()
    (here / "train.sh").write_text(export_verl(config, ONE, made_by="a\ntouch made_by").script)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["bash", here / "train.sh"], cwd=here, env=environment, check=True)
    assert sorted(path.name for path in here.iterdir()) == ["given", "train.sh"]
    given = json.loads((here / "given").read_text())
    assert f"data.train_files='{here}/train.parquet'" in given
    assert any(word.startswith("trainer.default_local_dir='runs/$HERE$(touch a)`touch b`") for word in given)
    # Of a Python file the only statements are those of the template, and the values those of the recipe.
    tree = ast.parse(export_trl(config, ONE, made_by='a"""\ntouch made_by').script)
    assert [type(node).__name__ for node in tree.body] == [
        "Expr", "Import", "ImportFrom", "ImportFrom", *["Assign"] * 4, "FunctionDef", "FunctionDef", "If"
    ]  # fmt: skip
    assert run in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


def test_verl_is_given_no_text_in_which_it_would_put_the_environment():
    with pytest.raises(ConfigError, match=r"default_local_dir would be 'runs/\$\{oc.env:HOME\}/checkpoints'"):
        export_verl(recipe(run__dir="runs/${oc.env:HOME}"), ONE)


def test_the_command_prints_the_script_alone_and_refuses_a_folder_with_files(tmp_path):
    printed = forked.realrl("export", "trl", str(PAPER), "--nodes", "2", "--optim.lr", "3e-6", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    ast.parse(printed.stdout)
    assert "learning_rate=3e-06" in printed.stdout
    assert "--nodes 2 --optim.lr 3e-6" in printed.stdout
    assert "trl: optim.weight_decay" in printed.stderr
    first = forked.realrl("export", "trl", str(PAPER), "-o", "out", cwd=tmp_path)
    assert first.stdout.splitlines()[-1].startswith("cd out && accelerate launch")
    again = forked.realrl("export", "trl", str(PAPER), "-o", "out", cwd=tmp_path)
    assert (again.returncode, "--overwrite" in again.stderr) == (1, True)
    assert forked.realrl("export", "trl", str(PAPER), "-o", "out", "--overwrite", cwd=tmp_path).returncode == 0
