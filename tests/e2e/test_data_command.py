import json

import forked
import pytest

from realrl.data.datasets import local_file

needs_data = pytest.mark.skipif(
    local_file("aime24") is None, reason="the named data sets are not here: set REALRL_DATA to their folder"
)


def run(*arguments):
    return forked.realrl("data", *arguments)


def test_check_lists_the_golds_that_fail(tmp_path):
    path = tmp_path / "set.jsonl"
    golds = [r"\frac{1}{2}", "(1,2)", r"\frac{1}{2", "Evelyn"]
    path.write_text("".join(json.dumps({"id": f"p{i}", "problem": "?", "answer": gold}) + "\n" for i, gold in enumerate(golds)))
    result = run("check", path)
    assert result.returncode == 1, result.stderr
    assert "3 of 4 golds pass" in result.stdout and r"fails: p2 gold \frac{1}{2: no_answer" in result.stdout
    assert "computer algebra: 0" in result.stdout


def test_show_and_check_say_what_was_left_out(tmp_path):
    path = tmp_path / "set.jsonl"
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1+1?"}]
    prefilled = [*chat, {"role": "assistant", "content": "Let me think."}]
    rows = [{"prompt": chat, "answer": "2"}, {"prompt": prefilled, "answer": "2"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in ("show", "check"):
        out = run(words, path).stdout
        assert f"WARNING: {path}: 1 bad rows skipped: line 2: the chat has the turns system, user, assistant" in out
        assert f"WARNING: {path}: the system turns of 1 chats are left out; set their text as data.system_prompt" in out
    assert "1+1?" in run("show", path).stdout


@needs_data
@pytest.mark.parametrize("name", ["aime25", "amc23", "math500", "minerva", "minerva_deepscaler", "olympiadbench", "math"])
def test_the_golds_of_the_real_sets_pass(name):
    result = run("check", name)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "(100.00%)" in result.stdout


@needs_data
def test_list_and_show():
    listed = run("list").stdout
    assert str(local_file("aime24")) in listed and "the 40 problems of 2023" in listed
    shown = run("show", "aime24", "--count", "1").stdout
    assert "30 problems" in shown and "Aya" in shown and "gold: 204" in shown


def test_an_unknown_set_is_named():
    result = run("check", "math50")
    assert result.returncode == 1 and "did you mean math500?" in result.stderr and "Traceback" not in result.stderr


@needs_data
def test_check_counts_repeated_problems_and_overlaps():
    out = run("check", "gsm8k_train", "--against", "gsm8k,aime24", "--shown", "2").stdout
    assert "repeated problems: 0; rows whose golds conflict: 0 of 0 problems" in out
    assert "overlap with gsm8k: 0 problems" in out and "overlap with aime24: 0 problems" in out
    out = run("check", "math", "--against", "olympiadbench", "--shown", "2").stdout
    assert "repeated problems: 10;" in out
    assert "overlap with olympiadbench: 4 problems, 4 exact, 4 with the same answer, in 4 rows" in out
    assert "math-train-3443 holds 100% of olympiadbench-2890" in out
