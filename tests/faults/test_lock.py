"""Two processes on one run folder: the second is refused, and told of the first; a dead owner is in nobody's way."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from small_runs import config

from realrl.errors import ConfigError
from realrl.rundir.lock import RunLock
from realrl.rundir.paths import LOCK
from realrl.training import train

HOLD = """
import sys
from pathlib import Path
from realrl.rundir.lock import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    lock.take()
    print("taken", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that works in tmp_path/run."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "taken\n"
        yield process
        process.kill()


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}])
def test_a_second_process_is_refused_with_the_owner_and_changes_nothing(tmp_path, tiny_folder, owner, how):
    run = tmp_path / "run"
    (run / "metrics.jsonl").write_text("theirs\n")
    with pytest.raises(ConfigError) as error:
        train(config(tiny_folder, run), **how)
    assert f"{run} is in use by process {owner.pid} on {socket.gethostname()}, started 2" in str(error.value)
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", LOCK]
    assert (run / "metrics.jsonl").read_text() == "theirs\n"
    # However the owner ends, its lock goes with it.
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    with RunLock(run) as lock:
        lock.take()
        assert lock.notes == []


def test_two_fresh_starts_at_once_make_one_run(tmp_path, tiny_folder, monkeypatch):
    """The folder appears while the second prepares, as if the first had won and even ended by then."""
    import realrl.training.run as module

    prepare = module.prepare

    def slow(*arguments, **keywords):
        (tmp_path / "run").mkdir()
        return prepare(*arguments, **keywords)

    monkeypatch.setattr(module, "prepare", slow)
    with pytest.raises(ConfigError, match="another process has just made"):
        train(config(tiny_folder, tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_clean_end_takes_the_name_out_and_another_hosts_crash_is_told(tmp_path):
    with RunLock(tmp_path) as lock:
        lock.take()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK).read_text() == ""
    (tmp_path / LOCK).write_text('{"pid": 7, "host": "elsewhere", "started": "then"}')
    with RunLock(tmp_path) as lock:
        lock.take()
        assert len(lock.notes) == 1 and "process 7 on elsewhere, started then, which did not end cleanly" in lock.notes[0]


def test_a_start_that_ended_before_its_config_was_written_can_be_replaced(tmp_path, tiny_folder):
    """Killed at its very beginning, or in the middle of --overwrite: the folder is still known for a run's."""
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).write_text("")
    (run / ".config.toml.tmp").write_text("[ru")
    train(config(tiny_folder, run, train={"steps": 1}, data={"eval": []}), overwrite=True)
    assert sorted(path.name for path in run.iterdir()) == sorted(
        [LOCK, "checkpoints", "config.toml", "environment.json", "metrics.jsonl", "rollouts"]
    )
    shutil.rmtree(run / "checkpoints")
    (run / "config.toml").unlink()
    train(config(tiny_folder, run, train={"steps": 1}, data={"eval": []}), overwrite=True)
