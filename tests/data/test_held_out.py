"""The one loader of held-out sets."""

import json

import pytest

from realrl.config import DataSection
from realrl.data import held_out_problems
from realrl.errors import DataError


def test_the_first_problems_of_a_file_its_size_and_its_bad_rows(tmp_path):
    rows = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(5)] + [{"question": "?", "answer": ""}]
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSection(train="addition", columns={"problem": "question"})
    found = held_out_problems(data, str(path), count=2)
    assert ([problem.answer for problem in found.problems], found.total) == (["1", "2"], 5)
    assert len(held_out_problems(data, str(path)).problems) == 5
    assert ["1 bad rows" in line for line in found.warnings] == [True]
    with pytest.raises(DataError, match="line 6"):
        held_out_problems(data, str(path), count=2, strict=True)


def test_a_generated_task_has_the_given_number_of_problems_or_128():
    data = DataSection(train="addition", task={"digits": 3})
    assert [len(held_out_problems(data, "addition", count=count).problems) for count in (7, None)] == [7, 128]
    assert all(len(problem.answer) >= 3 for problem in held_out_problems(data, "addition", count=7).problems)
