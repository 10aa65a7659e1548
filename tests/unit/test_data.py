import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from realrl.config import DataSection
from realrl.data import PromptStream, load_problems, render_prompts
from realrl.data.datasets import _data_folders
from realrl.data.tasks import TASKS, is_held_out
from realrl.errors import ConfigError, DataError
from realrl.models.adder import character_tokenizer
from realrl.types import Problem, Prompt

ROWS = [{"question": "1+1?", "gold": "2"}, {"question": "2+2?", "gold": 4}, {"question": "3+3?", "gold": 6.0}]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl_csv_parquet_and_folder_give_the_same_problems(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.csv").write_text(
        "question,gold\n" + "".join(f"{r['question']},{r['gold']}\n" for r in ROWS[:2]) + "3+3?,6\n"
    )
    table = pa.Table.from_pylist([{k: str(int(v)) if k == "gold" else v for k, v in row.items()} for row in ROWS])
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "folder").mkdir()
    pq.write_table(table, tmp_path / "folder" / "train.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet", "folder"):
        loaded = load_problems(str(tmp_path / name), columns={"problem": "question", "answer": "gold"})
        assert [(p.problem, p.answer) for p in loaded.problems] == [("1+1?", "2"), ("2+2?", "4"), ("3+3?", "6")], name
        assert loaded.bad_rows == 0


def test_bad_rows_are_counted_with_their_line_and_strict_refuses(tmp_path):
    path = write(tmp_path / "b.jsonl", [{"problem": "1+1?", "answer": "2"}, {"problem": "", "answer": "2"}])
    with path.open("a") as file:
        file.write('{"problem": "x"\n\n{"problem": "y", "answer": null}\n{"problem": "z", "answer": [1]}\n[1]\n')
    loaded = load_problems(str(path))
    assert (len(loaded.problems), loaded.bad_rows) == (1, 5)
    places = [text.split(":")[0] for text in loaded.bad_examples]
    assert places == ["line 2", "line 3", "line 5", "line 6", "line 7"]
    assert "answer is missing" in loaded.bad_examples[2] and "a list" in loaded.bad_examples[3]
    with pytest.raises(DataError, match=r"5 bad rows.*line 2"):
        load_problems(str(path), strict=True)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [{"problem": "x", "anwser": "1"}],
            {},
            r"no answer column.*it has \['problem', 'anwser'\].*data.columns.answer",
        ),
        ([{"problem": "x", "answer": "1"}], {"answer": "awnser"}, "did you mean 'answer'"),
        ([], {}, "holds no usable problem"),
        ([{"problem": "", "answer": "1"}], {}, "holds no usable problem; 1 bad rows"),
    ],
)
def test_unusable_files_say_what_to_do(tmp_path, rows, columns, message):
    with pytest.raises(DataError, match=message):
        load_problems(str(write(tmp_path / "c.jsonl", rows)), columns=columns)


def test_missing_sets_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="did you mean gsm8k"):
        load_problems("gsm8kk")
    with pytest.raises(DataError, match="no file at"):
        load_problems(str(tmp_path / "none.jsonl"))
    monkeypatch.setenv("REALRL_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"Set REALRL_DATA to a folder with eval/aime24\.parquet"):
        load_problems("aime24")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load_problems(str(tmp_path / "broken.parquet"))


def test_gsm8k_as_released_ends_with_its_answer(tmp_path):
    path = write(tmp_path / "g.jsonl", [{"question": "q", "answer": "48/2 = 24\n#### 72"}])
    assert load_problems(str(path)).problems[0].answer == "72"


@pytest.mark.skipif(
    not any((folder / "eval/gsm8k_test.parquet").is_file() for folder in _data_folders()),
    reason="the shared data sets are not here: set REALRL_DATA to their folder",
)
def test_real_sets_have_their_published_sizes():
    sizes = {"gsm8k": 1319, "gsm8k_train": 7473, "math500": 500, "aime24": 30, "deepscaler": 40309, "math": 11998}
    for name, size in sizes.items():
        loaded = load_problems(name)
        assert len(loaded.problems) == size, name
        assert loaded.bad_rows == {"deepscaler": 6, "math": 2}.get(name, 0)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_generated_tasks_are_right_and_never_leak(name):
    options = {} if name == "largest_of_three" else {"digits": 2}
    train = load_problems(name, task_options=options).problems
    held_out = load_problems(name, task_options=options, count=32, split="eval").problems
    assert len({p.problem for p in held_out}) == len(held_out) == 32
    assert all(is_held_out(p.problem) for p in held_out)
    sample = [train[i] for i in range(400)]
    assert not {p.problem for p in sample} & {p.problem for p in held_out}
    assert [train[i] for i in range(400)] == sample
    for problem in [*sample, *held_out]:
        text = problem.problem
        if "largest" in text:
            expected = max(int(n) for n in text.rstrip("?").split(": ")[1].split(", "))
        else:
            numbers = text.removeprefix("What is ").rstrip("?=").replace(" ", "")
            a, sign, b = numbers.partition("*" if "*" in numbers else "+")
            expected = int(a) * int(b) if sign == "*" else int(a) + int(b)
        assert problem.answer == str(expected)


def test_task_options_are_checked():
    with pytest.raises(ConfigError, match="no key 'digit'"):
        load_problems("addition", task_options={"digit": 2})
    with pytest.raises(ConfigError, match="from 1 to 9"):
        load_problems("addition", task_options={"digits": 0})


def test_a_finite_set_is_seen_once_an_epoch_in_an_order_that_the_step_alone_fixes():
    problems = [Problem(str(i), f"p{i}", "1") for i in range(10)]
    streams = [PromptStream(problems, lambda p: Prompt(p, p.problem, (1,)), endless=False, seed=3) for _ in range(2)]
    seen = [p.problem.id for step in range(5) for p in streams[0].step(step, 4)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(str(i) for i in range(10))
    assert seen[:10] != seen[10:]
    assert [p.problem.id for p in streams[1].step(3, 4)] == seen[12:16]


CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def test_plain_and_chat_prompts():
    data = DataSection.model_validate(
        {
            "train": "x",
            "system_prompt": "s",
            "prompt_prefix": "<",
            "prompt_suffix": ">",
            "examples": [{"problem": "e", "response": "r"}],
        }
    )
    problem = Problem("0", "q", "1")
    plain = render_prompts([problem], character_tokenizer(), data).prompts[0]
    assert plain.text == "s\n\n<e>\n\nr\n\n<q>" and plain.token_ids[0] == 1 and 2 not in plain.token_ids
    chat = render_prompts([problem], chat_tokenizer(), data).prompts[0]
    # This template knows no system role, as Gemma's: its text opens the first user turn.
    assert chat.text == "[user]s\n\n<e>[assistant]r[user]<q>[assistant]"
    assert len(chat.token_ids) == len(chat.text)


def test_long_prompts_are_counted_and_dropped():
    data = DataSection(train="x", max_prompt_tokens=4)
    rendered = render_prompts([Problem("0", "123", "1"), Problem("1", "1234", "1")], character_tokenizer(), data)
    assert [p.problem.id for p in rendered.prompts] == ["0"] and rendered.too_long == 1


def test_further_accepted_answers(tmp_path):
    path = tmp_path / "set.jsonl"
    rows = [
        {"problem": "a", "answer": "1", "also_accept": ["2", "3"]},
        {"problem": "b", "answer": ["4", "5"]},
        {"problem": "c", "answer": "6", "also_accept": None},
        {"problem": "d", "answer": ["7", ""]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_problems(str(path))
    assert [problem.golds for problem in loaded.problems] == [("1", "2", "3"), ("4", "5"), ("6",)]
    assert loaded.bad_rows == 1 and "further accepted answer" in loaded.bad_examples[0]
