"""A disk that is full and a folder that cannot be written to: a clear end, nothing torn, and a run that goes on with space."""

import os
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from small_runs import CAMPAIGN, assert_same_run, config

from realrl.errors import TrainingError
from realrl.training import train
from realrl.training.checkpoint import list_checkpoints, newest_whole

# Where the run meets them: alarms and the config, metrics, rollouts or an evaluation, the tokenizer, weights and optimizer.
LIMITS = [1_000, 4_000, 6_000, 9_000, 20_000, 60_000, 120_000] if CAMPAIGN else [1_000, 4_000, 60_000]


@contextmanager
def file_limit(size):
    """No file grows beyond `size` bytes: writing fails as on a full disk (EFBIG for ENOSPC), in the middle of a write, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What is printed lands in a file of pytest.
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for descriptor, copy in enumerate(kept, start=1):
            os.dup2(copy, descriptor)


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    train(config(tiny_folder, run))
    return run


def assert_goes_on(tiny_folder, run, whole, error):
    """After a failure: the message, whole files alone under their names, and the rest of the run."""
    assert str(run) in error and "cannot be written: " in error and "free space" in error
    assert not list((run / "checkpoints").glob(".writing*")) and not list(run.rglob("*.tmp"))
    checkpoints = list_checkpoints(run / "checkpoints")
    if checkpoints:
        assert (
            newest_whole(run / "checkpoints") == (checkpoints[-1], []) and f"--resume goes on from {checkpoints[-1]}" in error
        )
    train(config(tiny_folder, run), resume=True)
    assert_same_run(run, whole)


@pytest.mark.parametrize("size", LIMITS)
def test_a_file_that_cannot_grow_ends_the_run_with_the_path_and_the_reason(tiny_folder, tmp_path, whole, size):
    run = tmp_path / "run"
    with file_limit(size), pytest.raises(TrainingError, match="File too large|os error 27") as error:
        train(config(tiny_folder, run))
    print(f"at {size} bytes: {error.value}")
    assert_goes_on(tiny_folder, run, whole, str(error.value))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount file systems")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("free_kib", [2, 8, 40, 100, 250, 400, 600] if CAMPAIGN else [250])
def test_a_full_disk(tiny_folder, small_disk, whole, free_kib):
    run, ballast = small_disk / "run", small_disk / "ballast"
    ballast.write_bytes(bytes(2**20 - 1024 * free_kib))
    with pytest.raises(TrainingError, match="No space left on device|os error 28") as error:
        train(config(tiny_folder, run))
    print(f"with {free_kib} KiB: {error.value}")
    shutil.copytree(run, small_disk.parent / "run")
    ballast.unlink()
    error = str(error.value).replace(str(small_disk), str(small_disk.parent))
    assert_goes_on(tiny_folder, small_disk.parent / "run", whole, error)


def test_a_read_only_folder_is_refused_and_stays_as_it_is(tiny_folder, small_disk, tmp_path):
    run = small_disk / "run"
    short = {"train": {"steps": 2}, "log": {"rollouts": False}}
    train(config(tiny_folder, run, **short))
    (run / "checkpoints" / "step_2" / "SHA256SUMS").unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(TrainingError, match=f"{run} cannot be written: Read-only file system; .*the same command again"):
            train(config(tiny_folder, run, **short), **how)
    with pytest.raises(TrainingError, match="Read-only file system"):
        train(config(tiny_folder, small_disk / "other", **short))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
