"""A user's own sampler, data set and evaluation engine are named as "module:name" and need no change to realrl."""

import json
from collections import defaultdict

import forked
import pyarrow.parquet as pq
import pytest

TINY = forked.ROOT / "recipes" / "tiny.toml"
SMALL = "--train.steps 1 --train.prompts_per_step 2 --train.mini_batch_prompts 2 --eval.problems 4 --sampling.group_size 3"


def train(folder, words):
    return forked.realrl("train", TINY, "--run.dir", folder, *SMALL.split(), *words.split())


def evaluate(folder, words):
    return forked.realrl("eval", "tiny-adder", "--samples", "1", "--max-new-tokens", "3", "-o", folder, *words.split())


def test_a_run_with_a_sampler_and_a_data_set_of_ones_own(tmp_path):
    done = train(tmp_path / "run", "--sampling.engine own_parts:Greedy --data.train own_parts:doubles")
    assert done.returncode == 0, done.stderr
    groups = defaultdict(list)
    for row in pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet").to_pylist():
        groups[row["prompt"]].append(row["response"])
    assert len(groups) == 2 and all(len(texts) == 3 and len(set(texts)) == 1 for texts in groups.values())
    assert set(groups) <= {f"{n}+{n}=" for n in range(10, 14)}


def test_an_evaluation_with_an_engine_and_a_data_set_of_ones_own(tmp_path):
    done = evaluate(tmp_path / "out", "--engine own_parts:Echo -b own_parts:doubles")
    assert done.returncode == 0, done.stderr
    (stored,) = (tmp_path / "out" / "generations").iterdir()
    assert [json.loads(line)["response"] for line in stored.read_text().splitlines()] == ["20+", "21+", "22+", "23+"]
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["engine"] == "own_parts:Echo"


@pytest.mark.parametrize(
    "words, message",
    [
        (
            "--sampling.engine vlm",
            "unknown sampling.engine 'vlm'; known: hf, vllm, or a sampler class as \"module:name\"; did you",
        ),
        (
            "--sampling.engine no_such:Thing",
            "cannot be loaded: ModuleNotFoundError: No module named 'no_such'; give a sampler",
        ),
        ("--sampling.engine own_parts:Greed", "cannot be loaded: AttributeError: module 'own_parts' has no attribute 'Greed'"),
        ("--sampling.engine own_parts:SEVEN", "sampling.engine = 'own_parts:SEVEN' is of type int; it must be a sampler class"),
        ("--sampling.engine own_parts:nothing", "gave a NoneType; a sampler has the methods sample and update_weights"),
        ("--data.train own_parts:nothing", "data set 'own_parts:nothing' gave a NoneType; it must return rows with"),
        ("--data.train own_parts:SEVEN", "data set = 'own_parts:SEVEN' is of type int; it must be a function"),
    ],
)
def test_what_is_no_sampler_or_data_set_is_refused_in_one_line(tmp_path, words, message):
    done = train(tmp_path / "run", words)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ("--engine own_parts:nothing", "--engine 'own_parts:nothing' gave a NoneType; an engine has the methods generate and"),
        ("--engine openai", "the engine openai needs a server: give --endpoint URL"),
    ],
)
def test_what_is_no_engine_is_refused(tmp_path, words, message):
    done = evaluate(tmp_path / "out", f"{words} -b column_addition --problems 2")
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
