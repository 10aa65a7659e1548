"""No text of a model, a data file or a file's name steers the terminal: it is printed as its escapes."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import HOSTILE, STEERING, run
from made_runs import make_run

import realrl
from realrl.eval.progress import Progress
from realrl.system.terminal import printable
from realrl.training.display import Display

SOURCE = Path(realrl.__file__).parent
# A file's name can hold all of it but the lone surrogate.
NAME = HOSTILE.replace("\ud800", "").replace("/", "")


def clean(result, *expected):
    status, out, err = result
    assert not STEERING.search(out + err), (out, err)
    for text in expected:
        assert text in out + err
    return status


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"response": f"\\boxed{{{HOSTILE}}}", "answer": f"7{HOSTILE}", "label": True}
    path.write_text(json.dumps(row) + "\n" + json.dumps({"response": "\\boxed{7}", "answer": HOSTILE}) + "\n")
    return path


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    # In the text of a problem the lone surrogate makes a bad row.
    text = HOSTILE.replace("\ud800", "")
    made = [{"problem": f"p{n} {text}", "answer": HOSTILE, "id": f"{n}{HOSTILE}"} for n in range(3)]
    made += [{"problem": f"p0 {text}", "answer": "2", "id": "again"}, {"problem": HOSTILE, "answer": "2", "id": HOSTILE}]
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in made) + "[1]\n" + json.dumps({"problem": "x", "answer": {HOSTILE: 1}})
    )
    return path


def test_grade(rows, capsys, monkeypatch):
    assert (
        clean(run(capsys, monkeypatch, "grade", rows, "--reward", "exact_match", "--compare", "deepscaler"), "disagreements")
        == 0
    )
    rows.write_text(HOSTILE.replace("\ud800", ""))
    assert clean(run(capsys, monkeypatch, "grade", rows), "realrl: error") == 1
    assert clean(run(capsys, monkeypatch, "grade", rows, "--compare", HOSTILE), "realrl: error") == 1


def test_data(problems, tmp_path, capsys, monkeypatch):
    assert clean(run(capsys, monkeypatch, "data", "show", problems, "--count", "9"), "\\x1b[31m") == 0
    clean(run(capsys, monkeypatch, "data", "check", problems, "--reward", "exact_match", "--against", problems), "conflict")
    named = tmp_path / f"{NAME}.jsonl"
    problems.rename(named)
    assert clean(run(capsys, monkeypatch, "data", "show", named), "\\x1b[31m") == 0
    assert clean(run(capsys, monkeypatch, "data", "show", HOSTILE), "realrl: error") == 1


def test_errors_of_every_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(f"{NAME}.toml").write_text(f'run = {{ "\\u001b[2J" = "{chr(0x202E)}" }}\n')
    Path(NAME).mkdir()
    for words in (
        ["train", f"{NAME}.toml"],
        ["train", NAME],
        ["show-config", f"{NAME}.toml"],
        ["show-config", f"{NAME}.toml", f"--run.{HOSTILE}", "1"],
        ["sweep", f"{NAME}.toml"],
        ["report", NAME],
        ["report", HOSTILE.replace("\ud800", "")],
        ["figures", NAME, "-o", "out"],
        ["eval", NAME, "-b", "addition"],
        ["eval", "--regrade", NAME],
        ["eval", "compare", NAME, NAME],
        ["watch", NAME],
        ["export", "trl", f"{NAME}.toml"],
    ):
        if words[0] == "watch":
            Path(NAME, "file").write_text("")
        assert clean(run(capsys, monkeypatch, *words), "realrl: error") == 1, words


def test_reports_figures_and_comparisons(tmp_path, capsys, monkeypatch):
    folder = make_run(tmp_path / "run", steps=2).rename(tmp_path / NAME)
    assert clean(run(capsys, monkeypatch, "report", folder, "-o", tmp_path / f"{NAME}.html"), "MB") == 0
    for name in ("a", "b"):
        (tmp_path / name / "samples").mkdir(parents=True)
        pq.write_table(
            pa.table({"id": [NAME, "x"], "problem": ["p", "q"], "status": ["correct", "wrong"]}),
            tmp_path / name / "samples" / f"{NAME}.parquet",
        )
    assert clean(run(capsys, monkeypatch, "eval", "compare", tmp_path / "a", tmp_path / "b"), "p-value") == 0


def test_displays(capsys):
    """The training's lines are cleaned by the recorder; names in the bars are cleaned here, and are no markup."""
    with Progress(HOSTILE, 3, 1) as progress:
        progress.add(2, 10)
    clean((0, *capsys.readouterr()), "1 of 3")


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "400")
    display = Display(10, 0, rich=True)
    display.phase(f"evaluating {HOSTILE}")
    display.close()
    # The bar itself moves the cursor; what it must not hold is the text's own sequences.
    shown = terminal.getvalue()
    assert "\x1b[31mred" not in shown and "\x1b]0;title" not in shown and "\x9b2J" not in shown and "\u202e" not in shown
    assert "[/x][bold]" in shown


def test_output_that_is_no_utf8_does_not_stop_a_command(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"problem": "\u2211 \U0001f9ee", "answer": "2"}) + "\n")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "realrl", "data", "show", str(tmp_path / "p.jsonl")]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0 and b"\\u2211" in done.stdout, done


def test_printable_leaves_no_steering_character():
    every = "".join(map(chr, range(0x3000)))
    assert not STEERING.search(printable(every)) and "\n" not in printable(every)
    assert printable("Größe ≤ 3 €, 数") == "Größe ≤ 3 €, 数"


def test_the_commands_print_through_one_function():
    """A new command cannot forget it: `print` stands in `say` alone."""
    printing = []
    for file in sorted((SOURCE / "cli").glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        names = [node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "") for node in calls]
        printing += [(file.name, name) for name in names if name in ("print", "echo")]
    assert printing == [("common.py", "print")]
    tree = ast.parse((SOURCE / "cli" / "common.py").read_text())
    say = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "say")
    names = [node.func.id for node in ast.walk(say) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" in names
