"""Run `realrl train` processes, a few at a time, each with a log and a lock, and stop them cleanly on Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from realrl.config import dump_config
from realrl.sweep.outcome import can_resume
from realrl.sweep.plan import PlannedRun
from realrl.system.platforms import kill_group, try_lock, usable_cpus

_POLL_S = 0.2


@dataclass(slots=True)
class Job:
    """A run in progress. Its log stays locked while the process or one of its children lives. A sweep skips a run whose log is
    locked: another sweep runs it, or it has outlived its sweep."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path
    began: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class Interrupt:
    """Counts Ctrl-C (or SIGTERM): the first asks the runs to save and stop, the second kills them."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Interrupt:
        self._previous = {signum: signal.signal(signum, self._handle) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, signum: int, frame: object) -> None:
        self.count += 1

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)


def run_all(
    runs: Iterable[PlannedRun],
    jobs: int,
    logs: Path,
    interrupt: Interrupt,
    *,
    still_to_do: Callable[[PlannedRun], bool],
    on_start: Callable[[PlannedRun], None],
    on_busy: Callable[[PlannedRun], None],
    on_end: Callable[[Job, int], None],
) -> None:
    """Run the processes, `jobs` at a time; `on_end` gets each job with its exit status.

    `still_to_do` is called while the run's lock is held, so that two sweeps of one folder share the work. No process is left
    behind, even after an error.
    """
    queue, active, heard = list(runs), [], 0
    try:
        while active or (queue and not interrupt.count):
            while queue and len(active) < jobs and not interrupt.count:
                run = queue.pop(0)
                log = _locked(logs / f"{run.name}.log")
                if log is None:
                    on_busy(run)
                    continue
                with log:
                    if still_to_do(run):
                        on_start(run)
                        active.append(_start(run, log, logs, jobs))
            time.sleep(_POLL_S)
            for job in [job for job in active if job.process.poll() is not None]:
                active.remove(job)
                on_end(job, job.process.returncode)
            if heard < interrupt.count:
                heard = interrupt.count
                for job in active:
                    _stop(job, kill=heard > 1)
    finally:
        for job in active:
            _stop(job, kill=True)


def _locked(path: Path) -> BinaryIO | None:
    """The file, opened for appending and locked; None if another process holds the lock."""
    file = path.open("ab")
    if not try_lock(file.fileno()):
        file.close()
        return None
    return file


def _start(run: PlannedRun, log: BinaryIO, logs: Path, jobs: int) -> Job:
    recipe = logs / f"{run.name}.toml"
    recipe.write_text(dump_config(run.config))
    # A folder without a checkpoint can only be started again with --overwrite.
    how = ["--resume"] if can_resume(run.folder) else ["--overwrite"] if run.folder.exists() else []
    words = ["train", str(recipe), *how]
    log.write(f"$ realrl {' '.join(words)}\n".encode())
    log.flush()
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(usable_cpus() // jobs, 1)))
    process = subprocess.Popen(
        [sys.executable, "-m", "realrl", *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        # Ctrl-C in the terminal reaches only the sweep, which passes it on to the trainers, not to their grading workers.
        start_new_session=True,
    )
    return Job(run, process, Path(log.name), time.monotonic())


def _stop(job: Job, *, kill: bool) -> None:
    if kill:
        kill_group(job.process.pid)
        job.process.wait()
    else:
        # Does nothing if it has ended.
        job.process.send_signal(signal.SIGINT)
