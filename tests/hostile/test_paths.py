"""Names become file names only where they are safe: nothing is written outside of the run's own folder."""

import os
from pathlib import Path

import pytest
from commands import run
from made_runs import make_run

from realrl.config import parse_config
from realrl.errors import ConfigError, DataError
from realrl.eval.store import Generation, Store
from realrl.report.report import report_data
from realrl.sweep import load_sweep
from realrl.system.files import file_name

NAMES = (
    "../x",
    "../../../../tmp/x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/../../b",
    "a\x00b",
    "a\nb",
    "x" * 5000,
    "ä" * 5000,
    "C:\\x",
    "~/x",
    "$HOME",
    "-rf",
    "*",
    "\u202e",
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_benchmarks_stay_in_the_folder(tmp_path, name):
    with Store(tmp_path / "eval") as store:
        store.append(name, [Generation(name, 0, "d", "r", 1, False)])
        assert (name, 0) in store.load(name)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in written} <= {tmp_path / "eval", tmp_path / "eval" / "generations"}
    assert len(os.fsencode(file_name(name))) < 200 and "/" not in file_name(name)


def test_long_names_that_begin_alike_have_files_of_their_own():
    assert file_name("x" * 5000 + "a") != file_name("x" * 5000 + "b")


def test_benchmarks_that_would_share_a_file_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, monkeypatch, "eval", "tiny", "-b", "a/b.jsonl,a_b.jsonl")
    assert status == 1 and "have the same file name" in err
    # In a run the second one's evaluation would take the first one's place.
    with pytest.raises(ConfigError, match="data.eval .*'a/b.jsonl' and 'a_b.jsonl' would be written to the same file"):
        parse_config({"model": {"path": "x"}, "data": {"train": "addition", "eval": ["a/b.jsonl", "a_b.jsonl"]}})


@pytest.mark.parametrize("name", ["", " ", "a\x00b", "a\nb", "a\x1b[2J", "x" * 300, "runs/" + "ä" * 150, "\ud800"], ids=ascii)
def test_folders_that_cannot_be_are_refused_before_anything_is_done(name):
    with pytest.raises(ConfigError, match="not a usable folder name|run.dir|is not text"):
        parse_config({"run": {"dir": name}, "model": {"path": "x"}, "data": {"train": "addition"}})


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_in_a_sweep_stay_below_its_folder(tmp_path, name):
    (tmp_path / "recipe.toml").write_text('[model]\npath = "x"\n[data]\ntrain = "addition"\n')
    import tomli_w

    sweep = {"base": "recipe.toml", "dir": str(tmp_path / "runs"), "variants": {name: {"optim.lr": 1e-6}}}
    (tmp_path / "sweep.toml").write_text(tomli_w.dumps(sweep))
    try:
        plan = load_sweep(tmp_path / "sweep.toml")
    except ConfigError as error:
        assert "shorten" in str(error)  # noqa: PT017
        return
    for planned in plan.final({}):
        assert planned.folder.resolve().parent == tmp_path / "runs" and planned.name == planned.folder.name
    values = {**sweep, "variants": {}, "grid": {"data.prompt_suffix": [name, "b"]}}
    (tmp_path / "sweep.toml").write_text(tomli_w.dumps(values))
    for planned in load_sweep(tmp_path / "sweep.toml").final({}) if len(name) < 100 else ():
        assert planned.folder.resolve().parent == tmp_path / "runs"


def test_a_link_out_of_a_run_is_not_read(tmp_path):
    """What a report shows of a stranger's run folder is that folder's, not a file of ours."""
    (tmp_path / "secret.jsonl").write_text('{"step": 1, "time": 1, "reward/mean": 0.123}\n')
    folder = make_run(tmp_path / "run", steps=2)
    for name in ("metrics.jsonl", "config.toml", "environment.json", "rollouts/step_000001.parquet"):
        path = folder / name
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "secret.jsonl")
        with pytest.raises(DataError, match="outside of the run|cannot be read"):
            report_data([folder])
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    # A run, and its folders, may lie on another disk.
    (folder / "rollouts").rename(tmp_path / "elsewhere")
    (folder / "rollouts").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(folder)
    assert report_data([tmp_path / "link"])["rollouts"][0]["total"] == 8


def test_overwrite_follows_no_link(tmp_path):
    """shutil.rmtree removes the link, never what it leads to."""
    import shutil

    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("")
    folder = make_run(tmp_path / "run", steps=1)
    (folder / "link").symlink_to(keep)
    shutil.rmtree(folder)
    assert (keep / "file").is_file() and not Path(folder).exists()
