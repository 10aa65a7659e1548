import dataclasses
import itertools
import json
import math
import statistics

import numpy as np
import pytest

from realrl.config import RewardSection
from realrl.errors import ConfigError, DataError
from realrl.eval import pass_at_k
from realrl.eval.benchmarks import COLUMNS, PAPER_ROWS
from realrl.eval.compare import compare_evaluations
from realrl.eval.intervals import interval, sign_flip_p_value, standard_error
from realrl.eval.passk import majority
from realrl.eval.run import EvalRequest, run_eval
from realrl.eval.runner import answer_missed, evaluate, grade_generations
from realrl.eval.store import Generation, Store
from realrl.eval.tables import Table, average, notes, summary_table
from realrl.rewards import build_grader
from realrl.rundir.rollouts import write_rollouts
from realrl.sampling import SamplingParams
from realrl.types import Problem, Prompt, Rollout


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (5, 3), (5, 5), (1, 1)])
def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_sample(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("arguments", [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_pass_at_k_refuses_impossible_counts(arguments):
    with pytest.raises(ValueError, match="it needs"):
        pass_at_k(*arguments)


@pytest.mark.parametrize(
    ("answers", "right", "value"),
    [
        (["7", "7", "8", None], [True, True, False, False], 1.0),
        (["7", "8", "8", None], [True, False, False, False], 0.0),
        (["7", "8", "9", None], [True, False, False, False], 1 / 3),
        (["1/2", "0.5", "8", "9"], [True, True, False, False], 1.0),  # right answers are one vote, however written
        ([None, None], [False, False], 0.0),
    ],
)
def test_majority_is_the_chance_that_the_most_frequent_answer_is_right(answers, right, value):
    assert majority(answers, right) == pytest.approx(value)


def test_wrong_answers_that_are_equal_vote_together():
    answers, right = ["7", "8.0", "8", "7"], [True, False, False, True]
    assert majority(answers, right) == 1.0
    assert majority(answers, right, lambda a, b: float(a) == float(b)) == 0.5


def test_standard_errors_are_those_of_the_textbook():
    scores = np.array([[1, 0], [1, 1], [0, 0]], dtype=float)
    error = standard_error(scores)
    # Of the mean of three problem means; of two samples each (variance of 0 and 1 is 0.5) in the first problem alone.
    assert error.total == pytest.approx(statistics.stdev([0.5, 1, 0]) / 3**0.5)
    assert error.samples == pytest.approx((0.5 / 2) ** 0.5 / 3)
    assert error.problems == pytest.approx((error.total**2 - error.samples**2) ** 0.5)
    single = standard_error(scores[:, :1])
    assert (single.samples, single.problems) == (None, None)
    assert standard_error(scores[:1]).total == 0.0


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = interval([rng.normal(0.3, 1, 60)])
        covered += low <= 0.3 <= high
    # 95 % of 200, give or take three standard errors and the bootstrap's own optimism.
    assert 175 <= covered <= 199


def test_the_interval_of_an_average_resamples_each_benchmark_by_itself():
    wide, exact = np.array([0.0, 1.0] * 20), np.full(1000, 0.5)
    low, high = interval([wide, exact])
    alone_low, alone_high = interval([wide])
    assert low == pytest.approx((alone_low + 0.5) / 2, abs=0.01) and high == pytest.approx((alone_high + 0.5) / 2, abs=0.01)


def test_the_p_value_is_the_share_of_sign_patterns_at_least_as_far():
    values = [0.5, 0.25, -0.25, 1.0, 0.0]
    patterns = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in itertools.product((-1, 1), repeat=5)]
    assert sign_flip_p_value([np.array(values)]) == pytest.approx(statistics.mean(abs(p) >= sum(values) for p in patterns))
    assert sign_flip_p_value([np.zeros(4)]) == 1.0
    # Many differences: random flips come close to the normal approximation, two-sided.
    many = np.array([1.0] * 60 + [-1.0] * 40)
    assert sign_flip_p_value([many]) == pytest.approx(math.erfc(19 / 100**0.5 / 2**0.5), abs=0.01)


class ScriptedSampler:
    """A sampler whose responses are known: `texts[prompt][sample]`; one token a character."""

    def __init__(self, texts, truncated=()):
        self.texts = texts
        self.truncated = truncated

    def sample(self, prompts, *, group_size, params, seeds, on_finished=None):
        return [
            Rollout(index, tuple(range(len(text))), (0.0,) * len(text), text, truncated=text in self.truncated)
            for index, _ in enumerate(prompts)
            for text in self.texts[index][:group_size]
        ]

    def update_weights(self, model):
        raise NotImplementedError


PROMPTS = [Prompt(Problem(f"p{i}", f"question {i}", answer), f"question {i}", (i + 1,)) for i, answer in enumerate(["7", "8"])]


def run_evaluate(sampler, samples):
    with build_grader(RewardSection(type="exact_integer")) as grader:
        params = SamplingParams(temperature=1.0)
        return evaluate(sampler, PROMPTS, grader, samples=samples, params=params, seed=0)


def test_evaluate_counts_what_was_sampled():
    texts = [[r"\boxed{7}", r"\boxed{9}", "hm", r"so \boxed{7}"], [r"\boxed{7}", "no idea", r"\boxed{8", "none"]]
    result = run_evaluate(ScriptedSampler(texts, truncated={r"\boxed{8", "hm", "none"}), samples=4)
    # Right: two of four for the first problem, none for the second.
    assert result.accuracy == pytest.approx((2 / 4 + 0 / 4) / 2)
    assert result.standard_error == pytest.approx(statistics.stdev([0.5, 0.0]) / 2**0.5)
    assert result.boxed_share == 4 / 8  # an unclosed box is none
    assert result.no_answer_share == 4 / 8
    assert result.truncated_share == 3 / 8
    assert result.mean_length == statistics.mean(len(text) for row in texts for text in row)
    assert [row["response"] for row in result.samples] == [*texts[0], *texts[1]]
    assert [row["id"] for row in result.samples] == ["p0"] * 4 + ["p1"] * 4
    # Of four samples c = 2 and c = 0 are right: 1 − C(2, 2)/C(4, 2) and 0, averaged; 7 has two of the three votes.
    assert result.pass_at == {1: 0.25, 2: pytest.approx((1 - 1 / 6) / 2), 4: 0.5}
    assert result.majority == 0.5
    assert result.figures().keys() == {field.name for field in dataclasses.fields(result)} - {"samples"}
    row = result.samples[1]
    row.pop("reason")
    assert row == {
        "id": "p0",
        "sample": 1,
        "problem": "question 0",
        "answer": "7",
        "response": r"\boxed{9}",
        "extracted": "9",
        "status": "wrong",
        "stage": "exact",
        "truncated": False,
        "tokens": 9,
        "parser_error": False,
        "answer_missed": False,
    }


def test_evaluate_refuses_a_sampler_that_loses_rollouts():
    with pytest.raises(AssertionError, match="2 generations; need those of 2 problems × 4"):
        run_evaluate(ScriptedSampler([["a"], ["b"]]), samples=4)


@pytest.mark.parametrize(
    ("response", "golds", "status", "extracted", "missed"),
    [
        ("Janet makes 18 dollars a day.", ["18"], "no_answer", None, True),
        ("so 18, that is \\boxed{17}", ["18"], "wrong", "17", True),
        ("so \\boxed{17}", ["18"], "wrong", "17", False),
        ("it is 118 or 18.5 or 18/5 or -18", ["18"], "no_answer", None, False),
        ("18" + "." * 300, ["18"], "no_answer", None, False),
        ("so 18", ["17", "18"], "no_answer", None, True),
        ("so \\boxed{18}", ["18"], "correct", "18", False),
        ("18", ["18"], "grader_error", None, False),
    ],
)
def test_an_answer_that_was_not_extracted_is_flagged(response, golds, status, extracted, missed):
    assert answer_missed(response, golds, status, extracted) is missed


def generation(identity="p0", sample=0, response="x", prompt="d"):
    return Generation(identity, sample, prompt, response, 1, False)


COUNTS = {"problems": 1, "of": 1, "samples": 1}
SETTINGS = {"model": "m", "seed": 0, "data": {}, "benchmarks": {"b": COUNTS}}


def test_the_store_gives_back_what_was_appended_and_cuts_a_torn_line(tmp_path):
    texts = ["plain", "null \0 and \n newline", "\u2028 \x85 separators", "é 数"]
    with Store(tmp_path) as store:
        store.append("a/b", [generation(sample=i, response=text) for i, text in enumerate(texts)])
    path = tmp_path / "generations" / "a_b.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "p1", "sa')
    with Store(tmp_path) as store:
        assert [g.response for g in store.load("a/b").values()] == texts
        assert path.read_bytes() == whole
        store.append("a/b", [generation("p1")])
        assert len(store.load("a/b")) == len(texts) + 1


def test_a_damaged_line_is_named(tmp_path):
    with Store(tmp_path) as store:
        store.append("b", [generation(), generation("p1")])
        path = tmp_path / "generations" / "b.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"p1"', b'"p1'))
        with pytest.raises(DataError, match=r"b\.jsonl, line 2: not a stored generation"):
            store.load("b")


def test_one_process_at_a_time_has_the_folder(tmp_path):
    with Store(tmp_path), pytest.raises(DataError, match="in use by another"):
        Store(tmp_path)
    with Store(tmp_path):
        pass


def test_other_settings_are_refused_and_further_benchmarks_are_not(tmp_path):
    with Store(tmp_path) as store:
        with pytest.raises(DataError, match="has no settings.json; give the folder of an evaluation"):
            store.settings()
        store.keep_settings(SETTINGS)
        store.keep_settings(SETTINGS | {"benchmarks": {"c": COUNTS | {"samples": 2}}})
        assert store.settings()["benchmarks"] == {"b": COUNTS, "c": COUNTS | {"samples": 2}}
        with pytest.raises(DataError, match="seed was 0 and is now 1"):
            store.keep_settings(SETTINGS | {"seed": 1})
        with pytest.raises(DataError, match=r"other settings \(data.prompt_suffix was None and is now '!'\);"):
            store.keep_settings(SETTINGS | {"data": {"prompt_suffix": "!"}})
        (tmp_path / "settings.json").write_text("{")
        with pytest.raises(DataError, match="damaged"):
            store.settings()


def graded(texts, samples=2):
    problems = [prompt.problem for prompt in PROMPTS]
    generations = [generation(p.id, i, texts[n][i]) for n, p in enumerate(problems) for i in range(samples)]
    with build_grader(RewardSection(type="exact_integer")) as grader:
        return grade_generations(problems, generations, grader, samples=samples)


def test_the_precision_is_kept_with_the_generations(tmp_path):
    """Once chosen it stays, whatever is faster on the machine that goes on; another one is refused."""
    request = EvalRequest(
        "tiny-adder", ("column_addition",), samples=1, problems=2, max_new_tokens=4, output=str(tmp_path / "out")
    )

    def kept():
        return json.loads((tmp_path / "out" / "settings.json").read_text())["dtype"]

    run_eval(dataclasses.replace(request, dtype="bfloat16"))
    assert kept() == "bfloat16"
    run_eval(dataclasses.replace(request, problems=3))
    assert kept() == "bfloat16"
    with pytest.raises(DataError, match="dtype was 'bfloat16' and is now 'float32'"):
        run_eval(dataclasses.replace(request, dtype="float32"))
    with pytest.raises(ConfigError, match="float16.*auto, float32, bfloat16"):
        run_eval(dataclasses.replace(request, dtype="float16"))


def test_an_evaluation_of_an_earlier_version_names_no_precision(tmp_path):
    request = EvalRequest(
        "tiny-adder", ("column_addition",), samples=1, problems=2, max_new_tokens=4, output=str(tmp_path / "out")
    )
    run_eval(dataclasses.replace(request, dtype="float32"))
    path = tmp_path / "out" / "settings.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "dtype"}))
    run_eval(dataclasses.replace(request, dtype="float32", problems=3))
    assert json.loads(path.read_text())["dtype"] == "float32"


def test_an_unknown_engine_leaves_no_folder_whose_settings_refuse_the_right_one(tmp_path):
    request = EvalRequest("tiny-adder", ("column_addition",), engine="vlm", output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="unknown --engine 'vlm'; known: auto, hf, vllm"):
        run_eval(request)
    assert not (tmp_path / "out").exists()


def test_the_summary_shows_our_row_and_the_papers_marked_as_such():
    half, whole = graded([["7", "7"], ["1", "1"]]), graded([["7", "7"], ["8", "8"]])
    table = summary_table("ours", {"aime24": half, "amc22_23": whole}, show_paper=True)
    assert list(table.header) == ["model", "aime24", "amc22_23", "Avg."]
    assert table.rows[0] == ["ours", "0.500 ± 0.500", "1.000 ± 0.000", "0.750 ± 0.250"]
    # Quoted from the paper's Table 1; its average is over six benchmarks, so it does not stand beside ours over two.
    assert ["paper, Table 1: REAL", "0.406", "0.734", "-"] in table.rows
    assert ["paper, Table 1: OpenAI-o1-Preview*", "0.400", "-", "-"] in table.rows
    assert all(row[0].startswith("paper") for row in table.rows[1:])
    assert any("not ours" in line for line in notes(["aime24"], True)) and "amc22_23" in notes(["amc22_23"], False)[0]
    six = dict.fromkeys(["aime24", "aime25", "math500", "amc23", "minerva", "olympiadbench"], half)
    assert summary_table("ours", six, show_paper=True).rows[8][-1] == "0.526"
    assert average({"a": half, "b": whole})["accuracy"] == 0.75


def test_the_papers_averages_are_those_of_its_columns():
    for row in PAPER_ROWS:
        *values, mean = row.values
        assert len(values) == len(COLUMNS)
        if mean is not None:
            assert mean == pytest.approx(statistics.mean(values), abs=0.0011), row


def test_a_comparison_pairs_the_problems_of_both(tmp_path):
    # Shares of right samples by problem; p3 is in one folder only. Differences b − a: 0.5, 0.5, 0.
    shares = {"a": {"p0": [0, 0], "p1": [0, 1], "p2": [1, 1], "p3": [1, 1]}, "b": {"p2": [1], "p1": [1], "p0": [0, 1]}}
    for folder, problems in shares.items():
        rows = [
            {"id": identity, "problem": f"{identity}?", "status": "correct" if right else "wrong"}
            for identity, own in problems.items()
            for right in own
        ]
        (tmp_path / folder / "samples").mkdir(parents=True)
        write_rollouts(tmp_path / folder / "samples" / "aime24.parquet", rows)
    table, (record,) = compare_evaluations(tmp_path / "a", tmp_path / "b")
    assert (record["problems"], record["left_out"], record["a"], record["b"]) == (3, 1, 0.5, pytest.approx(2.5 / 3))
    assert record["difference"] == pytest.approx(1 / 3)
    # Of the four sign patterns of 0.5 and 0.5, two are as far from 0 as this one.
    assert record["p_value"] == 0.5
    assert record["interval"] == (0.0, 0.5)
    assert "3 (1 not in both)" in table.markdown() and "+0.3333" in table.markdown()
    # The id of another problem, as of a generated task with another seed.
    write_rollouts(tmp_path / "b" / "samples" / "aime24.parquet", [{"id": "p0", "problem": "2 + 2?", "status": "wrong"}])
    with pytest.raises(DataError, match="1 of 1 common ids are different problems .*, the first is p0"):
        compare_evaluations(tmp_path / "a", tmp_path / "b")


def stored_evaluation(folder, data, **benchmarks):
    """What `realrl eval -o folder` leaves before it grades, of one sample of each problem."""
    sampling = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 8}
    with Store(folder) as store:
        store.keep_settings({"model": "m", "seed": 0, "data": {}, "benchmarks": benchmarks, **sampling})
        store.append(str(data), [generation(f"{data}-{number}", 0, "\\boxed{2}") for number in range(2)])


def test_generations_are_not_graded_by_another_problem_that_has_got_their_id(tmp_path):
    data = tmp_path / "data.jsonl"
    rows = ['{"problem": "1+1=", "answer": "2"}\n', '{"problem": "2+2=", "answer": "4"}\n']
    data.write_text("".join(rows))
    stored_evaluation(tmp_path / "out", data, **{str(data): {"problems": 2, "of": 2, "samples": 1}})
    request = EvalRequest(str(tmp_path / "out"), (), regrade=True)
    assert "0.500 ± 0.500" in run_eval(request)
    # A better gold is what grading again is for; a row more gives every id without a column of its own to another problem.
    data.write_text(rows[0] + rows[1].replace("4", "2"))
    assert "1.000 ± 0.000" in run_eval(request)
    data.write_text('{"problem": "0+0=", "answer": "2"}\n' + "".join(rows))
    with pytest.raises(DataError, match="2 of 2 problems are not those that the stored generations answer, the first is .*-0"):
        run_eval(request)


def test_rows_that_an_evaluation_leaves_out_are_said(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+1=", "answer": "2"}\n{"problem": "2+2=", "answer": null}\n')
    stored_evaluation(tmp_path / "out", data, **{str(data): {"problems": 1, "of": 1, "samples": 1}})
    run_eval(EvalRequest(str(tmp_path / "out"), (), regrade=True))
    assert f"WARNING: {data}: 1 bad rows skipped: line 2: the answer is missing" in capsys.readouterr().err


def test_the_interval_of_one_problem_is_said_to_be_none(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+1=", "answer": "2"}\n')
    stored_evaluation(tmp_path / "out", data, **{str(data): {"problems": 1, "of": 1, "samples": 1}})
    assert "one problem, so its ± 0 and its interval do not measure uncertainty" in run_eval(
        EvalRequest(str(tmp_path / "out"), (), regrade=True)
    )


def test_an_evaluation_without_a_benchmark_is_named(tmp_path):
    stored_evaluation(tmp_path / "out", "x")
    with pytest.raises(DataError, match="has no generations of any benchmark"):
        run_eval(EvalRequest(str(tmp_path / "out"), (), regrade=True))


def test_tables_in_markdown_and_latex():
    table = Table(["model", "a_b"], [["x|y", "1 ± 2"], ["50 %", "3"]])
    assert table.markdown().splitlines() == [
        "| model |   a_b |",
        "|-------|------:|",
        "| x\\|y  | 1 ± 2 |",
        "| 50 %  |     3 |",
    ]
    assert r"model & a\_b \\" in table.latex() and r"50 \% & 3 \\" in table.latex() and r"1 $\pm$ 2" in table.latex()
    json.dumps(graded([["7", "7"], ["1", "1"]]).figures())
