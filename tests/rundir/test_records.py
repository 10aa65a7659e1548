"""metrics.jsonl: what the writer writes the reader reads, with the kind of each record, also from files of earlier versions."""

import json

from realrl.rundir.metrics import MetricsFile, last_round, read_records, read_rounds

ROUND = {"reward/mean": 0.5}
HELD_OUT = {"eval/a/sampled/accuracy": 0.25}


def written(path, *records, resume=0, due=False):
    file = MetricsFile(path, resume, evaluation_due=due)
    for step, kind, metrics in records:
        file.write(step, kind, metrics)
    file.close()
    return file.kept


def kinds(path):
    return [(record["step"], record["kind"]) for record in read_records(path)[0]]


def test_records_have_a_kind_whatever_they_hold(tmp_path):
    path = tmp_path / "metrics.jsonl"
    # A reward that was not finite is left out.
    written(path, (0, "evaluation", HELD_OUT), (1, "round", {}), (1, "evaluation", HELD_OUT | ROUND))
    assert kinds(path) == [(0, "evaluation"), (1, "round"), (1, "evaluation")]
    assert last_round(path) == 1 and [record["step"] for record in read_rounds(path)] == [1]


def test_a_file_of_an_earlier_version_has_none_and_is_read_alike(tmp_path):
    path = tmp_path / "metrics.jsonl"
    old = [{"step": 0, **HELD_OUT}, {"step": 1, **ROUND}, {"step": 2, **ROUND, "kind": 7}, {"step": 2, **HELD_OUT}]
    path.write_text("".join(json.dumps(record) + "\n" for record in old))
    assert kinds(path) == [(0, "evaluation"), (1, "round"), (2, "round"), (2, "evaluation")]
    # Resumed after round 2, whose evaluation is still due.
    assert [record["step"] for record in written(path, (2, "evaluation", HELD_OUT), resume=2, due=True)] == [0, 1, 2]
    assert kinds(path) == [(0, "evaluation"), (1, "round"), (2, "round"), (2, "evaluation")]


def test_torn_and_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == ([], []) and last_round(path) == 0
    path.write_bytes(b'{"step": 1}\n[]\n\xff\n{"step": 1.5}\n{"step": 2, "x": "\xff"}\n{"step": 3')
    records, broken = read_records(path)
    assert [record["step"] for record in records] == [1, 2] and broken == [2, 3, 4]
    # A whole object without its line break is read, and written again by the resumed run.
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    assert [record["step"] for record in read_records(path)[0]] == [1, 2]
    assert [record["step"] for record in written(path, resume=2)] == [1]
    assert path.read_bytes() == b'{"step": 1}\n'
