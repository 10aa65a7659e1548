"""Held-out answers are graded by the rank that sampled them, and the figures are the same on any number of ranks."""

import json

import forked
import held_out
import pyarrow.parquet as pq

from realrl.seeding import derive_seed


def graded_on(folder, ranks):
    """What each rank graded, the figures, and the rows."""
    folder.mkdir()
    for rank in forked.on_ranks(ranks, held_out.main, str(folder)):
        assert rank.returncode == 0, rank.stderr[-3000:]
    (record,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = pq.read_table(folder / "eval" / "set_sampled_step_000002.parquet").to_pylist()
    graded = [json.loads((folder / f"graded_{rank}.json").read_text()) for rank in range(ranks)]
    return graded, {name: value for name, value in record.items() if not name.startswith("time")}, rows


def test_each_rank_grades_what_it_sampled(tmp_path):
    seed = derive_seed(0, "eval", "set")
    expected = [
        [f"{prompt} {derive_seed(seed, prompt, sample)}" for sample in range(held_out.SAMPLES)]
        for prompt in range(held_out.COUNT)
    ]
    alone, figures, rows = graded_on(tmp_path / "1", 1)
    assert alone == [sum(expected, [])] == [[row["response"] for row in rows]]
    right = [[int(text.split()[1]) % 2 for text in texts] for texts in expected]
    assert figures["kind"] == "evaluation" and figures["step"] == 2
    assert figures["eval/set/sampled/accuracy"] == sum(map(sum, right)) / (held_out.COUNT * held_out.SAMPLES)
    for ranks in (2, 7):
        graded, ours, our_rows = graded_on(tmp_path / str(ranks), ranks)
        assert graded == [sum(expected[rank::ranks], []) for rank in range(ranks)]
        assert ours == figures and our_rows == rows
