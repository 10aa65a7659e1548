import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from realrl import cli
from realrl.config import DataSection, parse_config
from realrl.data import PromptStream, check_held_out, load_problems, render_prompt, render_prompts, training_problems
from realrl.data.cleaning import OverlapCounts, count_overlap, deduplicate, find_overlap, grams, load_finite, normal_form
from realrl.data.datasets import local_file
from realrl.data.tasks import TASKS, is_held_out
from realrl.errors import ConfigError, DataError
from realrl.models.adder import character_tokenizer
from realrl.rewards import verify
from realrl.training.distributed import World
from realrl.training.setup import _training_prompts, prepare
from realrl.types import Problem, Prompt

ROWS = [{"question": "1+1?", "gold": "2"}, {"question": "2+2?", "gold": 4}, {"question": "3+3?", "gold": 6.0}]

needs_data = pytest.mark.skipif(
    local_file("gsm8k") is None, reason="the named data sets are not here: set REALRL_DATA to their folder"
)


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
        file.write('{"problem": "x"\n\n{"problem": "y", "answer": null}\n{"problem": "z", "answer": [[1]]}\n[1]\n')
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
        ([], {}, "has no usable problem"),
        ([{"problem": "", "answer": "1"}], {}, "has no usable problem; 1 bad rows"),
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
    with pytest.raises(DataError, match=r"Set REALRL_DATA to a folder with eval/aime24\.parquet"):
        load_problems("aime24")
    monkeypatch.setenv("REALRL_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"REALRL_DATA = .*gone' is not a folder"):
        load_problems("aime24")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load_problems(str(tmp_path / "broken.parquet"))


def test_gsm8k_as_released_ends_with_its_answer(tmp_path):
    path = write(tmp_path / "g.jsonl", [{"question": "q", "answer": "48/2 = 24\n#### 72"}])
    assert load_problems(str(path)).problems[0].answer == "72"


@needs_data
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
    assert loaded.bad_rows == 1 and "another accepted answer" in loaded.bad_examples[0]


def test_columns_may_be_nested_and_problems_chats(tmp_path):
    row = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1?"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 7},
    }
    path = write(tmp_path / "verl.jsonl", [row, {"prompt": [], "reward_model": None}])
    loaded = load_problems(str(path), columns={"id": "extra_info.index"})
    assert [(p.id, p.problem, p.answer) for p in loaded.problems] == [("7", "1+1?", "2")]
    assert loaded.bad_rows == 1


def test_a_damaged_row_group_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "set.parquet"
    rows = [{"problem": f"unique text {i} {i * 7919}", "answer": str(i)} for i in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000, compression="zstd")
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place + 40 : place + 400] = bytes(360)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"set\.parquet cannot be read as Parquet \(row group 1, after row 1000\)"):
        load_problems(str(path))


def test_filters_keep_rows_by_value_and_by_range(tmp_path):
    levels = [1, 3, None, "4", 5, "?"]
    rows = [{"problem": f"p{i}", "answer": "1", "level": level, "source": "ab"[i % 2]} for i, level in enumerate(levels)]
    path = str(write(tmp_path / "set.jsonl", rows))

    def kept(**keep):
        data = DataSection.model_validate({"train": path, "filter": keep})
        problems, notes = training_problems(data, 0)
        return [int(p.problem[1:]) for p in problems], notes

    assert kept(level={"min": 3, "max": 4}) == ([1, 3], [f"{path}: 4 rows left out by data.filter, 2 kept"])
    assert kept(level={"min": 3})[0] == [1, 3, 4]
    assert kept(source=["a"], level=[1, 5])[0] == [0, 4]
    with pytest.raises(DataError, match=r"no column 'lvl', named in data.filter; it has \['problem'"):
        kept(lvl=[1])
    with pytest.raises(DataError, match="data.filter removed 6 rows"):
        kept(source=["c"])
    with pytest.raises(ConfigError, match="is a generated task"):
        training_problems(DataSection.model_validate({"train": "addition", "deduplicate": True}), 0)


def problems(*pairs):
    return [Problem(str(i), text, answer) for i, (text, answer) in enumerate(pairs)]


def test_equal_problems_are_kept_once_and_conflicting_ones_not_at_all():
    found = deduplicate(
        problems(
            (r"Compute $\dfrac{1}{2}+x$ .", "1"),
            ("Solve for y", "2"),
            (r"compute \(\frac12 + x\)", "1.0"),
            ("Find x+1", "3"),
            ("Find $x + 1$", "4"),
            ("Find x-1", "4"),
            ("What is 1.5?", "3/2"),
            ("What is 15?", "15"),
            ("See [asy]draw(A);[/asy] 7", "1"),
            ("See [asy]draw(B);[/asy] 7", "2"),
        )
    )
    assert [p.id for p in found.kept] == ["0", "1", "5", "6", "7", "8", "9"]
    assert (found.repeated, found.conflicting) == (1, 2) and [[p.id for p in g] for g in found.conflicts] == [["3", "4"]]


def test_overlap_counts_shared_word_grams():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    # 14 words hold 7 runs of 8; without the last word 6 of the 7 are left, without the last two 5.
    words = text.split()
    evaluated = problems((text, "1"), ("one two three four five six seven eight nine", "1"))
    train = problems(*((" ".join([*words[:count], "and so on"]), "1") for count in (14, 13, 12)), ("ONE two; three", "1"))
    found = find_overlap(train, evaluated)
    assert [(pair.train.id, pair.evaluated.id, pair.exact) for pair in found] == [("0", "0", False), ("1", "0", False)]
    assert [pair.containment for pair in found] == [1.0, pytest.approx(6 / 7)]
    assert find_overlap(problems((text.upper() + ".", "1")), evaluated)[0].exact
    assert len(grams(text)) == 7 and normal_form("A, b:  $C$.") == "abc"


def test_held_out_problems_are_compared_with_training_problems_by_their_form():
    train = problems((r"Compute $\dfrac{1}{2}+x$ .", "1"), ("Find x", "2"))
    held_out = {"a": problems((r"compute \(\frac12 + x\)", "1"), ("Find x + 1", "3")), "b": problems(("Find y", "2"))}
    assert check_held_out(DataSection(train="t.jsonl"), train, held_out) == [
        "WARNING: 1 of the 2 held-out problems of a are also in data.train = 't.jsonl', so their accuracy is too high; "
        "leave them out of training with data.decontaminate = ['a'], or name another set in data.eval"
    ]
    with pytest.raises(DataError, match="1 of the 1 held-out problems of a .* other problems; leave them out of training"):
        check_held_out(DataSection(train="t.jsonl"), train, {"a": held_out["a"][:1]})
    with pytest.raises(DataError, match="other problems; name another set in data.eval"):
        check_held_out(DataSection(train="t.jsonl"), train, {"addition": held_out["a"][:1]})


def test_held_out_sets_have_the_columns_of_the_recipe_when_they_are_left_out_of_training(tmp_path):
    files = {
        name: str(write(tmp_path / f"{name}.jsonl", [{"q": text, "a": "1"} for text in texts]))
        for name, texts in {"train": ("x", "y"), "held_out": ("X.", "z")}.items()
    }
    section = {"train": files["train"], "eval": [files["held_out"]], "columns": {"problem": "q", "answer": "a"}}
    left, _ = training_problems(DataSection.model_validate(section | {"decontaminate": [files["held_out"]]}), 0)
    assert [problem.problem for problem in left] == ["y"]


# Of the README.md beside the sets: evaluation problems exact, exact + near, of these with the same answer, training rows.
# Less one same answer: olympiadbench-2185 asks for 6m, the training row for its value 6 at m = 1.
CONTAMINATION = {
    ("dapo_math_17k", "amc22_23"): (14, 34, 32, 48),
    ("dapo_math_17k", "amc23"): (8, 19, 17, 26),
    ("dapo_math_17k", "math500"): (7, 14, 9, 18),
    ("dapo_math_17k", "olympiadbench"): (9, 49, 16 - 1, 50),
    ("deepscaler", "math500"): (9, 16, 11, 37),
    ("deepscaler", "olympiadbench"): (3, 8, 7, 8),
    ("math", "math500"): (0, 13, 0, 30),
    ("math", "olympiadbench"): (4, 4, 4, 4),
}


@needs_data
@pytest.mark.parametrize("train", ["dapo_math_17k", "deepscaler", "math", "gsm8k_train"])
def test_the_published_contamination_is_found(train):
    rows = load_problems(train).problems
    for name in ("aime24", "aime25", "amc22_23", "amc23", "math500", "minerva", "olympiadbench", "gsm8k"):
        counts = count_overlap(find_overlap(rows, load_problems(name).problems))
        assert counts == OverlapCounts(*CONTAMINATION.get((train, name), (0, 0, 0, 0))), name


@needs_data
def test_a_recipe_cleans_its_training_set():
    data = DataSection(train="dapo_math_17k", deduplicate=True, decontaminate=("amc22_23", "olympiadbench"))
    left, notes = training_problems(data, 0)
    assert len(left) < 17398 - 1000 and len(notes) == 3
    assert "1056 repeated problems left out, and 40 rows of 19 problems with different golds" in notes[0]
    assert "overlap 34 of 83 problems of amc22_23" in notes[1] and "overlap 49 of 675 problems of olympiadbench" in notes[2]
    assert not find_overlap(left, load_problems("amc22_23").problems)


def test_a_gold_that_is_a_number_is_what_was_meant(tmp_path):
    golds = [0.1 + 0.2, 1 / 3, 1e-7, 2.5, 6.0, 3 * 1.1, 123456.789]
    path = write(tmp_path / "a.jsonl", [{"problem": "p", "answer": gold} for gold in golds])
    found = [problem.answer for problem in load_problems(str(path)).problems]
    assert found == ["0.3", "0.333333333333333", "1e-07", "2.5", "6", "3.3", "123456.789"]
    assert verify(r"\boxed{\frac{1}{3}}", found[1]) and verify(r"\boxed{0.3}", found[0])


def test_a_task_that_has_fewer_problems_than_are_asked_for_ends():
    """Of 81 sums of two digits about one in eight is held out."""
    problems = load_problems("addition", count=10**9, split="eval").problems
    assert 1 <= len(problems) < 81 and len({problem.problem for problem in problems}) == len(problems)


def test_a_generated_task_is_nothing_to_go_through(tmp_path):
    """Its training part has two thousand million problems."""
    data = DataSection(train=str(write(tmp_path / "a.jsonl", ROWS)), decontaminate=("column_addition",))
    for read in (lambda: load_finite("column_addition"), lambda: training_problems(data, 0)):
        with pytest.raises(ConfigError, match="'column_addition' is a generated task: it is endless"):
            read()


def test_the_command_refuses_a_generated_task_wherever_it_is_named(tmp_path, capsys, monkeypatch):
    path = str(write(tmp_path / "a.jsonl", [{"problem": "1+1=", "answer": "2"}]))
    for words in (["addition"], [path, "--against", "addition"]):
        monkeypatch.setattr("sys.argv", ["realrl", "data", "check", *words])
        with pytest.raises(SystemExit):
            cli.main()
        out, err = capsys.readouterr()
        assert "'addition' is a generated task" in err and not out


def test_figures_are_left_out_and_those_without_an_end_cost_no_time():
    words = "one two three four five six seven eight"
    assert grams(f"[asy] {words} [/asy] {words}") == {tuple(words.split())}
    # With a search to the end of the text from each beginning this would take minutes.
    assert grams("[asy]" * 100_000) == {("asy",) * 8}


def test_a_generated_prompt_over_the_limit_that_comes_late_is_named():
    """A tokenizer of pairs of digits, of which it lacks one, so that few prompts are longer than those looked at first."""
    tokenizer = character_tokenizer()
    tokenizer.add_tokens([f"{pair:02}" for pair in range(100) if pair != 37])
    problems = load_problems("column_addition", task_options={"digits": 9}).problems
    lengths = [len(render_prompt(problems[i], tokenizer, DataSection(train="")).token_ids) for i in range(3000)]
    limit = max(lengths[:256])
    late = next(i for i, length in enumerate(lengths) if length > limit)
    data = {"train": "column_addition", "task": {"digits": 9}, "max_prompt_tokens": limit}
    stream, *_ = _training_prompts(parse_config({"model": {"path": "x"}, "data": data}), tokenizer, [])
    assert len(stream.step(0, 256)) == 256
    with pytest.raises(DataError, match=f"more than data.max_prompt_tokens = {limit}"):
        stream.step(late, 1)


def test_a_run_says_where_its_responses_go_past_the_positions_of_the_model(tiny_folder):
    """The longest prompt that was looked at has 11 tokens with the one that begins it, of the model's 128."""
    for tokens, told in ((117, False), (118, True)):
        data = {"train": "column_addition", "task": {"digits": 4}}
        document = {"model": {"path": str(tiny_folder)}, "data": data, "sampling": {"max_new_tokens": tokens}}
        run = prepare(parse_config(document), World())
        run.grader.close()
        assert any("exceed the 128 positions" in note for note in run.notes) == told
