"""A tracker that is down takes nothing with it: training goes on, its own logs are whole, one warning."""

import importlib.machinery
import sys
from types import ModuleType

import pytest
from small_runs import assert_same_run, config

from realrl.training import train


class Backend(ModuleType):
    """Stands for wandb: the calls that it gets, of which `broken` fail."""

    def __init__(self, broken):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.broken, self.calls = broken, []

    def _call(self, name):
        self.calls.append(name)
        if name == self.broken:
            raise ConnectionError("the backend is down\nand more")

    def init(self, **settings):
        self._call("init")

    def log(self, metrics, step):
        self._call("log")

    def finish(self):
        self._call("finish")


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    train(config(tiny_folder, run, train={"steps": 2}))
    return run


@pytest.mark.parametrize(
    ("broken", "calls", "step"), [("init", ["init"], 0), ("log", ["init", "log"], 0), ("finish", None, 2), (None, None, None)]
)
def test_a_tracker_that_fails_is_told_of_once_and_left_out(
    tiny_folder, tmp_path, whole, monkeypatch, capsys, broken, calls, step
):
    backend = Backend(broken)
    monkeypatch.setitem(sys.modules, "wandb", backend)
    run = tmp_path / "run"
    train(config(tiny_folder, run, train={"steps": 2}, log={"wandb": True}))
    lines = [line for line in capsys.readouterr().out.splitlines() if "wandb" in line]
    warning = f"step {step}: WARNING: log.wandb failed (ConnectionError: the backend is down) and gets no more metrics"
    assert [line.startswith(warning) for line in lines] == ([True] if broken else [])
    # Two evaluations before, two records a step, two more evaluations after the second.
    assert backend.calls == (calls or ["init", *["log"] * 6, "finish"])
    if broken:
        alarms = (run / "alarms.txt").read_text().splitlines()
        assert [line for line in alarms if "wandb" in line] == lines
    (run / "alarms.txt").unlink(missing_ok=True)
    (whole / "alarms.txt").unlink(missing_ok=True)
    assert_same_run(run, whole)
