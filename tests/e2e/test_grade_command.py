import json

import forked


def run(*arguments):
    return forked.realrl("grade", *arguments)


def test_grade_writes_verdicts_and_lists_disagreements(tmp_path):
    rows = [
        {"response": r"\boxed{\frac{1}{2}}", "answer": "0.5", "id": "kept", "label": True},
        {"response": "no idea", "answer": ["1", "2"], "label": True},
        {"response": r"\boxed{1/2^{99}}", "answer": "1/2^{98}", "label": False},
        {"response": "\\boxed{\x1b[31m}", "answer": "3"},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(source, "-o", output, "--compare", "math-verify")
    assert result.returncode == 0, result.stderr
    assert "correct 1, wrong 2" in result.stdout or "wrong 2, correct 1" in result.stdout
    assert "disagreements with math-verify: 1 of 4" in result.stdout and "\x1b" not in result.stdout
    assert "labels, status: 0 of 1 wrong ones accepted, 1 of 2 right ones rejected" in result.stdout
    assert "labels, status_math-verify: 1 of 1 wrong ones accepted, 1 of 2 right ones rejected" in result.stdout
    graded = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["status"] for row in graded] == ["correct", "no_answer", "wrong", "wrong"]
    assert graded[0]["id"] == "kept" and graded[0]["extracted"] == r"\frac{1}{2}" and graded[0]["stage"] == "exact"
    assert [row["status_math-verify"] for row in graded][2] == "correct"


def test_grade_names_the_bad_line(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"response": "a", "answer": "1"}\n{"response": "b"}\n')
    result = run(source)
    assert result.returncode == 1 and "line 2: a row needs response (text) and answer" in result.stderr
    assert "Traceback" not in result.stderr
