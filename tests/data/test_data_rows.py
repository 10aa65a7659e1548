"""Rows of every form that data sets use for a problem and its answers."""

import json
import re
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realrl.data import load_problems

ASK = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": "Be short."}
PREFILL = {"role": "assistant", "content": "Let me think."}


def read(tmp_path, **row):
    """The golds and text of the row, why it is bad, and the warnings; a good row stands beside it."""
    path = tmp_path / "rows.jsonl"
    whole = {"problem": "good", "answer": "0"} if "messages" not in row else {"messages": [ASK], "answer": "0"}
    path.write_text("".join(json.dumps(one) + "\n" for one in (whole, row)))
    loaded = load_problems(str(path))
    found = [(problem.problem, problem.golds) for problem in loaded.problems[1:]]
    return (found or [(None, ())])[0], " ".join(loaded.bad_examples), " ".join(loaded.warnings())


@pytest.mark.parametrize(
    "chat",
    [
        [ASK],
        [SYSTEM, ASK],
        ASK,
        [{"content": "1+1?"}],
        [{"from": "system", "value": "s"}, {"from": "human", "value": "1+1?"}],
        [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}],
        # Parquet gives every turn of a list the keys of all.
        [{"role": "user", "content": "1+1?", "from": None, "value": None}],
    ],
)
def test_of_a_chat_the_question_is_the_problem_however_it_is_stored(tmp_path, chat):
    for stored in (chat, json.dumps(chat), json.dumps(chat, indent=1)):
        assert read(tmp_path, problem=stored, answer="2")[0] == ("1+1?", ("2",))
    if isinstance(chat, list):
        assert read(tmp_path, messages=chat, answer="2")[0] == ("1+1?", ("2",))


def test_system_turns_that_are_left_out_are_counted(tmp_path):
    _, bad, said = read(tmp_path, problem=[SYSTEM, ASK], answer="2")
    assert not bad and "the system turns of 1 chats are left out; set their text as data.system_prompt" in said
    for chat in ([ASK], [{"role": "system", "content": " "}, ASK]):
        assert not read(tmp_path, problem=chat, answer="2")[2]


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([ASK, PREFILL], "has the turns user, assistant; it needs exactly one user turn, at the end; remove the answer"),
        ([SYSTEM, ASK, PREFILL], "has the turns system, user, assistant"),
        ([{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}], "has the turns user, assistant"),
        ([PREFILL, ASK], "has the turns assistant, user"),
        ([ASK, PREFILL, {"role": "user", "content": "And doubled?"}], "user, assistant, user; .*data.examples"),
        ([ASK, ASK], "has the turns user, user"),
        ([ASK, SYSTEM], "has the turns user, system"),
        ([SYSTEM, PREFILL], "has the turns system, assistant"),
        ([SYSTEM], "has the turns system"),
        ([{"role": "tool", "content": "x"}, ASK], "role 'tool'; known: system"),
        ([{"role": "user", "content": None}], "the user turn has no text"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}], "other than text"),
        (str([ASK]), "a chat stored as text, but not as valid JSON"),
        ([["1+1?"]], "the problem is a list"),
        ({"text": "1+1?"}, "the problem is a dict"),
    ],
)
def test_a_chat_that_asks_no_one_question_is_a_bad_row(tmp_path, chat, said):
    (found, _), bad, _ = read(tmp_path, problem=chat, answer="2")
    assert found is None
    assert re.search(said, bad), bad


@pytest.mark.parametrize(
    ("answer", "golds"),
    [
        ([5], ("5",)),
        ([5, "6", 0.5], ("5", "6", "0.5")),
        ('["5", "\\\\frac12"]', ("5", "\\frac12")),
        ("[5]", ("[5]",)),
        ("[1, 2)", ("[1, 2)",)),
        (-(2**70), (str(-(2**70)),)),
        (2.0**53, (str(2**53),)),
    ],
)
def test_answers_in_a_list_and_numbers(tmp_path, answer, golds):
    assert read(tmp_path, problem="p", answer=answer)[0] == ("p", golds)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([], "an empty list"),
        ([[5]], "the answer is a list"),
        ([5, None], "another accepted answer cannot be used: the answer is missing"),
        ("['5']", "a list stored as text, but not as valid JSON"),
        (12345678901234567890.0, "last digits are lost; write it as an integer or as text"),
        ("\ud800", "the answer contains half of a surrogate pair"),
    ],
)
def test_answers_that_are_not_sure_are_bad_rows(tmp_path, answer, said):
    (found, _), bad, _ = read(tmp_path, problem="p", answer=answer)
    assert found is None and said in bad


def test_decimals_and_bytes_of_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    for golds, expected in (
        ([Decimal("5.00"), Decimal("-2.50"), Decimal("1000.00")], ["5", "-2.5", "1000"]),
        ([Decimal(10**37 + 1), Decimal(100), Decimal(0)], [str(10**37 + 1), "100", "0"]),
        (["½".encode(), b"2", b"3"], ["½", "2", "3"]),
    ):
        pq.write_table(pa.table({"problem": [b"a", b"b", b"c"], "answer": golds}), path)
        assert [problem.answer for problem in load_problems(str(path)).problems] == expected
