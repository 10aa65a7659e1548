"""Every fenced block of README.md and docs/ runs as a reader would run it, or says in the text what it needs.

shell     `realrl …` runs here, in one folder a document and in the document's order, with stand-ins for models, data and sizes
python    runs; a comment behind an expression that begins with a value holds it: `pass_at_k(2, 1, 1)  # 0.5`
toml      parses as a recipe, or with `base` and `dir` as a sweep, whose grid a later block of the page may replace
json      each line is a problem
text      output and formulas

A comment that begins with "needs" marks what the machine of the tests does not have: behind a command that command, on a line
of its own the rest of the block. A block of Python that begins with `# NAME.py` is saved as that file. `ELSEWHERE` names the
test that runs a command which cannot run here. Any other block fails.
"""

import ast
import json
import math
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from pages import blocks, run_python
from typer.main import get_command
from typer.testing import CliRunner

from realrl.cli import app
from realrl.config import load_config, parse_config
from realrl.data.datasets import NAMED
from realrl.objectives import list_objectives
from realrl.rundir.alarms import HELD_OUT, RULES
from realrl.sweep import load_sweep

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TINY = "recipes/tiny.toml"
SHELLS = ("", "sh", "bash", "shell")

_RANKS = "tests/e2e/test_ranks_command.py::test_two_ranks_are_the_run_of_one_and_their_checkpoint_resumes_on_one"
ELSEWHERE = {
    # Five to eight minutes; the recipe's commands run below on the tiny model.
    "make quickstart": "tests/config/test_recipes.py::test_every_recipe_parses_and_names_things_that_exist",
    "make test": "tests/e2e/test_docs.py::test_page",
    # Two minutes.
    "python benchmarks/gpu_check.py --device cpu --tiny": (
        "tests/e2e/test_gpu_check.py::test_every_part_runs_and_one_that_fails_leaves_the_others_standing"
    ),
    "python examples/real_loop.py": "tests/examples/test_real_loop.py::test_it_learns",
    # Several processes.
    ".venv/bin/torchrun --nproc-per-node 2 -m realrl train recipes/tiny.toml --run.dir runs/two --train.parallel fsdp2": _RANKS,
    "torchrun --nproc-per-node 8 -m realrl train RECIPE.toml --train.parallel ddp": _RANKS,
    "torchrun --nproc-per-node 8 -m realrl train RECIPE.toml --train.parallel fsdp2": _RANKS,
    # A server.
    "realrl eval MODEL -b aime24 --endpoint http://127.0.0.1:8000/v1": (
        "tests/e2e/test_eval_command.py::test_a_real_server_and_transformers_give_the_same_greedy_responses"
    ),
}
# Words of a command, and what stands for them here: `{run}` is a finished run, `{evaluated}` an evaluation of its model.
STAND_INS = {
    "MODEL": "{run}/checkpoints/step_2",
    "RUN": "{run}",
    "FOLDER": "{evaluated}",
    "FOLDER_A": "{evaluated}",
    "FOLDER_B": "{evaluated}",
    "smollm2-135m": "{run}/checkpoints/step_2",
    "largest_of_three": "column_addition",
    "runs/quickstart/config.toml": "{run}/config.toml",
    "runs/quickstart/checkpoints/step_14": "{run}/checkpoints/step_2",
    "runs/mine/checkpoints/step_14": "runs/mine/checkpoints/step_2",
}
# What makes a command small; the last of two options counts.
_TRAIN = "--train.prompts_per_step 2 --train.mini_batch_prompts 2 --sampling.group_size 2 --eval.problems 2 --eval.every 0"
SMALLER = {
    "train": f"{_TRAIN} --sampling.max_new_tokens 8 --checkpoint.every 0 --log.rich false",
    "eval": "--problems 2 --samples 1 --max-new-tokens 4",
    "sweep": "--list",
}


def commands(text: str):
    """(command, comment) of a shell block; lines are joined, and a line "# needs …" marks every command after it."""
    rest = ""
    for line in text.replace("\\\n", " ").splitlines():
        command, _, comment = line.partition("#") if line.startswith("#") else line.partition(" #")
        comment = comment.strip()
        if not command.strip():
            rest = comment if comment.startswith("needs ") else rest
            continue
        yield " ".join(command.split()), comment if comment.startswith("needs ") else rest or comment


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """The stand-ins' folders: a run, an evaluation of it, and two problems under the name of every named set."""
    folder = tmp_path_factory.mktemp("docs")
    rows = [{"id": str(k), "problem": f"{k}+{k}=", "answer": str(2 * k), "answers_deepscaler": [str(2 * k)]} for k in (11, 12)]
    for name in {known.file for known in NAMED.values()}:
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / name)
    run, evaluated = folder / "run", folder / "evaluated"
    realrl(["train", str(ROOT / TINY), "--run.dir", str(run), "--train.steps", "2", *SMALLER["train"].split()])
    benchmark = f"--recipe {ROOT / TINY} -b column_addition {SMALLER['eval']}".split()
    realrl(["eval", str(run / "checkpoints" / "step_2"), *benchmark, "-o", str(evaluated)])
    return {"run": run, "evaluated": evaluated, "data": folder / "data"}


@pytest.fixture
def desk(tmp_path, monkeypatch, stand_ins):
    """A folder like a checkout's, with the files that the pages speak of."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "tiny.toml").symlink_to(ROOT / TINY)
    (tmp_path / "sweeps").mkdir()
    shutil.copytree(stand_ins["evaluated"], tmp_path / "evaluated")
    problems = [{"problem": f"{k}+{k}=", "answer": str(2 * k)} for k in range(10, 14)]
    for name, rows in {
        "problems.jsonl": problems[:2],
        "held_out.jsonl": problems[2:],
        "answers.jsonl": [{"response": r"so \boxed{2}", "answer": "2"}, {"response": "no idea", "answer": ["3", "4"]}],
    }.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("REALRL_DATA", str(stand_ins["data"]))
    monkeypatch.chdir(tmp_path)
    return {"run": stand_ins["run"], "evaluated": tmp_path / "evaluated"}


def realrl(words: list[str]) -> str:
    """Run a command in this process; its output."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}\n{result.exception!r}"
    return result.output


def run_command(command: str, desk: dict[str, Path]) -> None:
    name, *words = shlex.split(command)
    assert name in ("realrl", ".venv/bin/realrl") and words[0] != "watch", f"cannot be run by this test: {command}"
    words = [STAND_INS.get(word, word).format(**desk) if "{" not in word else word for word in words]
    if words[0] == "train":
        words = [TINY if word == "recipes/quickstart.toml" else word for word in words]
        words += [*SMALLER["train"].split(), "--train.steps", "3" if "--resume" in words else "2"]
    elif words[0] == "eval" and words[1] != "compare" and "--regrade" not in words:
        words += SMALLER["eval"].split()
    elif words[0] == "sweep" and "--list" not in words:
        words += SMALLER["sweep"].split()
    realrl(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, desk, monkeypatch):
    names: dict = {}
    sweep: dict = {}
    for language, line, text in blocks(page):
        place = f"{page.relative_to(ROOT)}:{line}"
        if language in SHELLS:
            for command, comment in commands(text):
                if not comment.startswith("needs ") and command not in ELSEWHERE:
                    run_command(command, desk)
        elif language == "python":
            if file := re.match(r"# (\w+\.py)\n", text):
                Path(file[1]).write_text(text)
                monkeypatch.syspath_prepend(str(Path.cwd()))
            elif not text.startswith("# needs "):
                run_python(text, names)
            else:
                ast.parse(text)
        elif language == "toml":
            document = tomllib.loads(text)
            if "base" in document and "dir" not in document:
                Path("page.toml").write_text(text)
                load_config("page.toml")
                continue
            if sweep or "base" in document:
                sweep = (
                    document if "base" in document else {key: sweep[key] for key in sweep if key not in ("grid", "reference")}
                )
                Path("sweeps/page.toml").write_text(tomli_w.dumps({**sweep, **document}))
                assert load_sweep("sweeps/page.toml").final_names, place
                continue
            parse_config({"model": {"path": "tiny-adder"}, "data": {"train": "column_addition"}, **document}, place)
        elif language == "json":
            assert all({"problem", "answer"} <= json.loads(row).keys() for row in text.splitlines()), place
        else:
            assert language == "text", f"{place}: a block of {language} is neither run nor output; see this test's docstring"


def test_commands_that_run_elsewhere_are_in_the_pages_and_their_tests_exist():
    written = {
        command for page in PAGES for language, _, text in blocks(page) if language in SHELLS for command, _ in commands(text)
    }
    assert not ELSEWHERE.keys() - written
    for test in ELSEWHERE.values():
        assert_exists(test, "ELSEWHERE")


def assert_exists(name: str, where: str) -> None:
    """A path of the repository, or below src/realrl, or path::test."""
    path, _, test = name.partition("::")
    found = next((base / path for base in (ROOT, ROOT / "src" / "realrl") if (base / path).exists()), None)
    assert found, f"{where} names {name}, which does not exist"
    assert not test or re.search(rf"^def {test}\(", found.read_text(), re.MULTILINE), f"{where} names {name}: no such test"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "AGENTS.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    """Files and tests in code font, commands and make's targets there, and links as a plain view of the file follows them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in re.findall(r"`([^`\n]+)`", text):
        # The study writes into docs/study.
        if code.startswith("docs/study/"):
            continue
        if re.fullmatch(r"(src|tests|recipes|benchmarks|docs|examples)/[\w./]+(::\w+)?|([a-z]+/)+\w+\.py", code):
            assert_exists(code, page.name)
        elif found := re.match(r"realrl ([a-z][a-z-]*)", code):
            assert found[1] in known, f"{page.name}: realrl has no command {found[1]}"
            for path in re.findall(r"recipes/[\w./]+\.toml", code):
                assert_exists(path, page.name)
        elif found := re.fullmatch(r"make ([a-z-]+)", code):
            assert found[1] in targets, f"{page.name}: the Makefile has no target {found[1]}"
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: link to {target}"


def documented_metrics() -> set[str]:
    page = (DOCS / "metrics.md").read_text().partition("## Saved rollouts")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    names = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    return {name.replace("SET", "column_addition").replace("MODE", mode) for name in names for mode in ("sampled", "greedy")}


def test_every_metric_of_a_run_has_a_row_and_every_row_a_metric(tmp_path):
    """Over runs that together write every kind: a KL penalty, a clip, a trust region, both modes of evaluation."""
    written: set[str] = set()
    objectives = ("--objective.kl.target ref --objective.kl.coef 0.1", "--objective.type grpo", "--objective.type disco")
    for index, objective in enumerate(objectives):
        run = tmp_path / str(index)
        words = f"--run.dir {run} --train.steps 1 {SMALLER['train']} --eval.greedy true {objective}".split()
        realrl(["train", str(ROOT / TINY), *words])
        for line in (run / "metrics.jsonl").read_text().splitlines():
            written |= json.loads(line).keys() - {"step", "time", "kind"}
    assert written == documented_metrics()


def test_every_alarm_and_column_of_the_rollouts_is_documented(stand_ins):
    page = (DOCS / "metrics.md").read_text()
    columns = pq.read_schema(stand_ins["run"] / "rollouts" / "step_000001.parquet").names
    assert not [name for name in columns if f"`{name}`" not in page.partition("## Saved rollouts")[2]]
    rung = {rule.text for rule in RULES} | {HELD_OUT}
    rows = re.findall(r"^\| (.+?) \| .+? \| (?:three|at once|once) \|", page.partition("## Alarms")[2], re.MULTILINE)
    assert len(rung) == len(rows)
    for message in rung:
        assert any(message.startswith(row) for row in rows), f"docs/metrics.md has no row for the alarm {message!r}"


def test_every_objective_has_a_row():
    names = set(re.findall(r"^\| `(\w+)`", (DOCS / "objectives.md").read_text(), re.MULTILINE))
    assert set(list_objectives()) <= names


def test_every_promise_names_a_test_that_is_there():
    rows = re.findall(r"^\| [^|]+ \| .+ \| `(tests/[^`]+)` \|$", (DOCS / "reliability.md").read_text(), re.MULTILINE)
    for file, _, name in (row.partition("::") for row in rows):
        assert f"def {name or 'test_'}" in (ROOT / file).read_text(), f"{file}::{name}"
    promises = len(re.findall(r"held by \|$", (DOCS / "reliability.md").read_text(), re.MULTILINE))
    assert promises == 2 and len(rows) > 25


def test_the_group_by_hand():
    """The table of docs/concepts.md from the formulas alone; its last column is the group torn into A, C and B, D."""
    page = (DOCS / "concepts.md").read_text()
    rows = re.findall(r"^\| [A-D] \| (right|wrong) \|(.*)\|$", page, re.MULTILINE)
    right = [label == "right" for label, _ in rows]
    scores, *columns = zip(*([float(cell.replace("−", "-")) for cell in cells.split("|")] for _, cells in rows), strict=True)
    tau = 0.5

    def loss(s):
        """Eq. 8."""
        sums = [
            sum(math.exp((-1 if q else 1) * x / tau) for x, label in zip(s, right, strict=True) if label == q) for q in (1, 0)
        ]
        return sum(math.log(1 + value) for value in sums)

    def weights(s, members):
        """Eq. 9 and 10."""
        found = {}
        for k in members:
            sign = -1 if right[k] else 1
            others = 1 + sum(math.exp(sign * s[i] / tau) for i in members if i != k and right[i] == right[k])
            found[k] = sign / tau / (1 + others * math.exp(-sign * s[k] / tau))
        return [found[k] for k in sorted(found)]

    whole = range(4)
    advantage = 0.5 / math.sqrt(4 * 0.25 / 3)
    a, c = weights(scores, (0, 2))
    b, d = weights(scores, (1, 3))
    expected = [
        weights([0.0] * 4, whole),
        weights(scores, whole),
        [(-1 if q else 1) * advantage * math.exp(s) for q, s in zip(right, scores, strict=True)],
        # The mean over two micro-batches.
        [a / 2, b / 2, c / 2, d / 2],
    ]
    for column, values in zip(columns, expected, strict=True):
        assert column == pytest.approx(values, abs=5e-4)
    assert f"2·log 3 = {loss([0.0] * 4):.3f}" in page and f"is {loss(scores):.3f} now" in page


def test_the_quick_start_keeps_its_numbers():
    config = load_config(ROOT / "recipes" / "quickstart.toml")
    page = (DOCS / "quickstart.md").read_text()
    assert (config.train.steps, config.train.prompts_per_step, config.sampling.group_size) == (14, 16, 8)
    assert "Fourteen rounds" in page and "8 answers to each of 16 problems" in page
    assert f"on {config.eval.problems} problems" in page
