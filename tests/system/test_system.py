"""What Linux and macOS do differently, with the other system imitated as far as Python sees it."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from apple import AppleMode, AppleTensor

from realrl import cli
from realrl.objectives import AdditiveObjective, LossInputs, ScoreObjective, build_objective, list_objectives
from realrl.system.files import clash
from realrl.system.platforms import try_lock, usable_cpus
from realrl.verifier.pool import VerifierPool

IMPORT_ALL = """
import importlib, pkgutil, sys
import psutil  # its module for Linux needs `resource`
for name in ("fcntl", "grp", "pwd", "resource", "syslog", "termios"):
    sys.modules[name] = None  # an import of it fails
import realrl
for module in pkgutil.walk_packages(realrl.__path__, "realrl."):
    if not module.name.startswith(("realrl.integrations.", "realrl.__main__")):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_every_module_is_imported_where_posix_modules_are_missing():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"realrl.rundir.lock", "realrl.training.loop", "realrl.verifier.pool", "realrl.sweep.processes"} <= set(
        done.stdout.split()
    )


def test_a_lock_lasts_as_long_as_a_child_has_the_file(tmp_path):
    path = tmp_path / "log"
    with path.open("ab") as ours:
        assert try_lock(ours.fileno())
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=ours)
    with path.open("ab") as other:
        assert not try_lock(other.fileno())
        child.communicate()
        assert try_lock(other.fileno())


def test_where_there_is_no_flock_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with (tmp_path / "log").open("ab") as file, pytest.raises(OSError, match="this system has no flock"):
        try_lock(file.fileno())


def test_a_worker_that_has_died_is_replaced_on_macos_too(monkeypatch):
    """There, a group of processes that have ended and were not waited for may not be sent a signal: EPERM."""
    killpg, refused = os.killpg, []

    def of_macos(group, signum):
        if psutil.Process(group).status() == psutil.STATUS_ZOMBIE:
            refused.append(group)
            raise PermissionError(1, "Operation not permitted")
        killpg(group, signum)

    monkeypatch.setattr(os, "killpg", of_macos)
    pool = VerifierPool("pool_verifiers:hang_or_die", workers=1, timeout_s=60)
    try:
        results = pool.grade([("die", "die"), ("a", "a")])
    finally:
        pool.close()
    assert [result.status for result in results] == ["grader_error", "correct"] and len(refused) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="imitates macOS on Linux")
def test_without_a_limit_of_address_space_a_worker_ends_by_the_memory_that_it_holds():
    pool = VerifierPool("mac_verifiers:hoard", workers=1, timeout_s=60, memory_mib=200)
    try:
        hoarded, right = pool.grade([("hoard", ""), ("a", "a")])
    finally:
        pool.close()
    assert (hoarded.status, hoarded.reason) == ("grader_error", "the grading worker died, twice")
    assert right.status == "correct"


def loss_and_weights(objective, tensors):
    inputs = LossInputs(**tensors)
    found = [objective.evaluate(inputs).loss]
    if isinstance(objective, ScoreObjective):
        found.append(objective.weights(objective.scores(inputs), inputs.groups))
    if isinstance(objective, AdditiveObjective):
        found.append(objective.advantages(inputs.groups))
    return found


@pytest.mark.parametrize("name", list_objectives())
def test_an_objective_is_the_same_on_a_device_without_float64(name):
    draw = torch.Generator().manual_seed(0)
    tensors = {f"logprobs_{role}": -torch.rand(8, 5, generator=draw) for role in ("policy", "old", "ref")} | {
        "loss_mask": torch.ones(8, 5, dtype=torch.bool),
        "rewards": torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 1]),
        "group_ids": torch.arange(8) // 4,
        "levels": torch.tensor([2, 1, 2, 0, 1, 0, 2, 2]),
    }
    objective = build_objective({"type": name})
    expected = loss_and_weights(objective, tensors)
    with AppleMode():
        found = loss_and_weights(objective, {key: AppleTensor(value) for key, value in tensors.items()})
        assert all(isinstance(value, AppleTensor) for value in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.inner, other)


def test_cpus_are_counted_where_no_affinity_is_known(monkeypatch):
    assert usable_cpus() == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cpus() == os.cpu_count()


def test_names_that_macos_takes_for_one_clash():
    assert clash(["math", "Math"]) == ("math", "Math")
    assert clash(["math", "maths", "math"]) is None


def test_windows_is_pointed_to_wsl(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1 and "WSL2" in capsys.readouterr().err


def test_the_makefile_asks_for_nothing_that_macos_make_lacks():
    """macOS has GNU make 3.81, of 2006."""
    text = Path(__file__, "../../../Makefile").resolve().read_text()
    newer = (".ONESHELL", ".SHELLFLAGS", ".EXTRA_PREREQS", "!=", "::=", "&:", "$(file ", "$(intcmp ", "$(let ")
    assert not [word for word in newer if word in text]
