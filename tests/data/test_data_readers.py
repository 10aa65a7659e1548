"""Files of problems in every form: read as they were meant, or refused with the place and the remedy."""

import bz2
import codecs
import csv
import gzip
import json
from decimal import Decimal
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realrl.config import RewardSection
from realrl.data import load_problems
from realrl.errors import DataError
from realrl.rewards.grade_file import grade_file

ROWS = [{"problem": 'Wie viel ist 1+1, "genau"?\nÄ', "answer": "2"}, {"problem": "2+2?", "answer": "4"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PAIRS = [(row["problem"], row["answer"]) for row in ROWS]


def read(path, data, **options):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    loaded = load_problems(str(path), **options)
    return [(problem.problem, problem.answer) for problem in loaded.problems], loaded.bad_examples


def table(path, separator):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["problem", "answer"], delimiter=separator)
        writer.writeheader()
        writer.writerows(ROWS)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json"])
@pytest.mark.parametrize(
    "text", [LINES, "\n \n" + LINES, json.dumps(ROWS), json.dumps(ROWS, indent=1), LINES.replace("\n", "\r\n")]
)
def test_json_by_lines_and_as_a_list(tmp_path, name, text):
    assert read(tmp_path / name, text) == (PAIRS, [])


def test_one_object_over_several_lines(tmp_path):
    assert read(tmp_path / "a.json", json.dumps(ROWS[0], indent=2)) == (PAIRS[:1], [])


@pytest.mark.parametrize(
    "encode",
    [
        lambda data: codecs.BOM_UTF8 + data,
        lambda data: data.decode().encode("utf-16"),
        lambda data: codecs.BOM_UTF16_BE + data.decode().encode("utf-16-be"),
        lambda data: data.decode().encode("utf-32"),
        gzip.compress,
        lambda data: gzip.compress(data[:30]) + gzip.compress(data[30:]),
        bz2.compress,
        lambda data: pa.compress(data, "zstd", asbytes=True),
    ],
)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
def test_byte_order_marks_and_compression(tmp_path, kind, encode):
    whole = table(tmp_path / "t", "," if kind == ".csv" else "\t") if kind in (".csv", ".tsv") else LINES.encode()
    data = encode(whole)
    suffix = {b"\x1f\x8b": ".GZ", b"BZ": ".bz2", b"\x28\xb5": ".zst"}.get(data[:2], "")
    assert read(tmp_path / f"a{kind}{suffix}", data) == (PAIRS, [])


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv"])
def test_a_row_that_is_not_utf8_is_left_out_and_counted(tmp_path, kind):
    separator = "\t" if kind == ".tsv" else ","
    whole = table(tmp_path / "t", separator) if kind != ".jsonl" else LINES.encode()
    pairs, bad = read(tmp_path / f"a{kind}", whole.replace("Ä".encode(), "Ä".encode("latin-1")))
    assert pairs == PAIRS[1:] and len(bad) == 1
    assert bad[0].endswith("not UTF-8 text (byte 0xc4); save the file as UTF-8")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.json", b'[{"problem": "\xe9", "answer": "1"}]', "cannot be read as one: not UTF-8 text .byte 0xe9"),
        ("a.jsonl", b'[\n{"problem": "a", "answer": "1"},\n{"problem": "b", "answer": "2"}\n', "begins like a JSON list"),
        ("a.json", b'{"version": 1,\n"data": [{"problem": "a", "answer": "1"}]}', r"it has \['version', 'data'\]"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-9], "cannot be read: Truncated .*; get the file again"),
        ("a.jsonl.gz", LINES.encode(), "cannot be read"),
        ("a.csv", codecs.BOM_UTF16_LE + b"p\x00r", "save it as UTF-8"),
        ("a.csv", b"problem,answer,answer\n1+1?,2,3\n", "two columns named 'answer'"),
        ("a.csv", b"probl\xe9me,answer\n1+1?,2\n", "line 1: not UTF-8"),
        # Python's reader by itself takes the rest of the file for one field, or drops the quotes.
        ("a.csv", b'problem,answer\n"1+1?,2\n2+2?,4\n', "line 3: not CSV .*quote fields"),
        ("a.csv", b'problem,answer\n"a" of "b"?,2\n', "line 2: not CSV"),
        ("a.parquet.gz", b"", r"unknown file type '\.parquet\.gz'"),
        ("a.txt", b"", r"unknown file type '\.txt'; known: \.jsonl, \.ndjson"),
    ],
)
def test_what_cannot_be_read_as_it_was_meant_is_refused(tmp_path, name, data, said):
    with pytest.raises(DataError, match=said):
        read(tmp_path / name, data)


def test_a_row_with_a_separator_that_is_not_quoted_is_left_out(tmp_path):
    """Else the problem is "What is 1" and its answer "000+1?"."""
    text = "problem,answer\nWhat is 1,000+1?,1001\n1+1?,2,,\n2+2?,4\n"
    pairs, bad = read(tmp_path / "a.csv", text)
    assert pairs == [("1+1?", "2"), ("2+2?", "4")]
    assert bad == ["line 2: 3 fields, but the header has 2; quote fields that contain a separator"]


def test_a_key_that_occurs_twice_is_a_bad_row(tmp_path):
    pairs, bad = read(tmp_path / "a.jsonl", LINES + '{"problem": "3+3?", "answer": "5", "answer": "6"}\n')
    assert pairs == PAIRS and "the key 'answer' occurs twice" in bad[0]


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    columns = [pa.array(["1+1?"]), pa.array(["2"]), pa.array(["3"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["problem", "answer", "answer"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns named 'answer'"):
        load_problems(str(tmp_path / "a.parquet"))


def test_a_float32_is_the_number_that_was_written(tmp_path):
    """As a double it is 0.100000001490116, which no answer equals."""
    golds = pa.array([0.1, 3.3, 2.0], pa.float32())
    nested = pa.StructArray.from_arrays([golds], names=["gold"])
    (tmp_path / "folder").mkdir()
    pq.write_table(pa.table({"problem": ["a", "b", "c"], "answer": golds, "by": nested}), tmp_path / "folder" / "a.parquet")
    # A folder is read by `datasets`, as the hub is.
    for path, column in product((tmp_path / "folder" / "a.parquet", tmp_path / "folder"), ("answer", "by.gold")):
        loaded = load_problems(str(path), columns={"answer": column})
        assert [problem.answer for problem in loaded.problems] == ["0.1", "3.3", "2"]


ANSWERS = [
    {"response": "It is\n\\boxed{2}", "answer": "2", "label": True},
    {"response": "Ä, 5", "answer": "4", "label": False},
    {"response": "3", "answer": "3", "label": None},
]
ANSWER_LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ANSWERS)
ANSWER_TABLE = 'response,answer,label\n"It is\n\\boxed{2}",2,True\n"Ä, 5",4,0\n3,3,\n'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", codecs.BOM_UTF8 + ANSWER_LINES.encode()),
        ("a.jsonl", ANSWER_LINES.encode("utf-16")),
        ("a.ndjson.gz", gzip.compress(ANSWER_LINES.encode())),
        ("a.json", json.dumps(ANSWERS, indent=1).encode()),
        ("a.csv", codecs.BOM_UTF8 + ANSWER_TABLE.encode()),
        ("a.tsv", ANSWER_TABLE.replace(",", "\t").replace("Ä\t", "Ä,").encode()),
        ("a.parquet", b""),
    ],
)
def test_responses_to_grade_are_read_alike(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist([row | {"seen": Decimal("1.5")} for row in ANSWERS]), path)
    report = grade_file(str(path), str(tmp_path / "out.jsonl"), reward=RewardSection(workers=1))
    assert [row["status"] == "correct" for row in report.rows] == [True, False, True]
    assert report.errors("status") == "0 of 1 wrong ones accepted, 0 of 1 right ones rejected"
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in ANSWERS[0]} for row in found] == ANSWERS


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"response": "\xe9", "answer": "1"}\n', "line 1: not UTF-8 text .byte 0xe9"),
        ("a.jsonl", b'{"response": "a", "answer": "1", "answer": "2"}\n', "line 1: .*the key 'answer' occurs twice"),
        ("a.csv", b"response,answer\n1,000,1000\n", "line 2: 3 fields, but the header has 2"),
        ("a.jsonl", b'{"response": "a", "answer": "1", "label": "right"}\n', "line 1: label is 'right'; write true if"),
        ("a.jsonl", b'{"response": "a", "answer": "1", "label": [1]}\n', r"label is \[1\]"),
        ("a.jsonl", b'{"response": "a", "answer": 1}\n', "line 1: a row needs response .text. and answer"),
        ("a.jsonl", b"\n", "has no rows"),
        ("a.txt", b"", "unknown file type"),
    ],
)
def test_responses_that_cannot_be_read_are_refused_with_their_line(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said):
        grade_file(str(tmp_path / name))
