"""Worker processes that judge answers under a deadline and a memory limit; one that hangs or dies is killed and replaced.

This module and what a worker imports stay free of torch, so that a worker starts fast and stays small.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple


class Judgement(NamedTuple):
    """The plain form of a Verdict, which the workers send: they import no torch."""

    status: str
    extracted: str | None = None
    reason: str = ""
    stage: str = ""
    seconds: float = 0.0
    score: float | None = None


Judge = Callable[..., Judgement]

_START_UP_S = 60.0
_WORKER = "from realrl.rewards.pool import serve; import sys; serve(*sys.argv[1:])"


def serve(descriptor: str, import_path: str, memory_mib: str, parent: str) -> None:
    """A worker's life: answer items until the pipe closes. It ends with its parent, even in the middle of an item."""
    # What stops a run may reach all its processes; the step in progress still needs its verdicts.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    connection = Connection(int(descriptor))
    module, _, name = import_path.partition(":")
    judge: Judge = getattr(importlib.import_module(module), name)
    _limit_memory(int(memory_mib))
    connection.send("ready")
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            result = judge(*item)
        except Exception as error:  # noqa: BLE001  whatever a grading library raises, the item alone fails
            result = Judgement("grader_error", None, f"{type(error).__name__}: {error}"[:200], "worker")
        connection.send(result)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _limit_memory(mebibytes: int) -> None:
    try:
        import resource
    except ImportError:  # no such limit on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


class _Worker:
    """A process of its own interpreter: neither a caller's unguarded main module nor a daemonic caller stands in the way."""

    def __init__(self, import_path: str, memory_mib: int) -> None:
        ours, theirs = socket.socketpair()
        # Where the caller finds its modules, the judge is found too.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with theirs:
            command = [sys.executable, "-c", _WORKER, str(theirs.fileno()), import_path, str(memory_mib), str(os.getpid())]
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.connection = Connection(ours.detach())
        self.ready = False
        self.item: int | None = None
        self.done = 0
        self.started = time.monotonic()
        self.deadline = self.started + _START_UP_S

    def give(self, index: int, item: tuple[Any, ...], timeout_s: float) -> None:
        self.item, self.started = index, time.monotonic()
        self.deadline = self.started + timeout_s
        try:
            self.connection.send(item)
        except OSError:
            # It died idle: reading from it says so, and the item counts as lost with it.
            self.deadline = self.started

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class JudgePool:
    """`workers` processes of the judge at `import_path` ("module:function"), started at the first call; thread-safe.

    Each item gets `timeout_s` seconds and each worker `memory_mib` MiB of address space; a worker is replaced after `recycle`
    items, which bounds what a grading library leaks.
    """

    def __init__(
        self, import_path: str, workers: int = 2, timeout_s: float = 5.0, memory_mib: int = 1024, recycle: int = 2000
    ) -> None:
        self._import_path = import_path
        self._count = workers
        self._timeout_s = timeout_s
        self._memory_mib = memory_mib
        self._recycle = recycle
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def judge(self, items: Sequence[tuple[Any, ...]], progress: Callable[[int], None] | None = None) -> list[Judgement]:
        """One judgement for each item (the judge's arguments), in order; a hang or a crash is `grader_error` for it alone.

        `progress` is told the number of finished items.
        """
        if self._owner != os.getpid():
            # After a fork the workers are the parent's.
            self._workers, self._lock, self._owner = [], threading.Lock(), os.getpid()
        with self._lock:
            return self._judge(items, progress or (lambda done: None))

    def _judge(self, items: Sequence[tuple[Any, ...]], progress: Callable[[int], None]) -> list[Judgement]:
        results: list[Judgement | None] = [None] * len(items)
        waiting = list(range(len(items)))[::-1]
        failed_starts = done = 0
        while done < len(items):
            while len(self._workers) < min(self._count, len(items)):
                self._workers.append(_Worker(self._import_path, self._memory_mib))
            for worker in self._workers:
                if worker.ready and worker.item is None and waiting:
                    index = waiting.pop()
                    worker.give(index, items[index], self._timeout_s)
            busy = [worker for worker in self._workers if not worker.ready or worker.item is not None]
            pause = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            answered = wait([worker.connection for worker in busy], timeout=pause)
            for worker in busy:
                if worker.connection in answered:
                    fault = self._receive(worker, results)
                elif time.monotonic() >= worker.deadline:
                    fault = f"no verdict within {self._timeout_s:g} s"
                else:
                    continue
                if fault or worker.done >= self._recycle:
                    failed_starts += not worker.ready
                    if worker.item is not None:
                        seconds = time.monotonic() - worker.started
                        results[worker.item] = Judgement("grader_error", None, fault, "deadline", seconds)
                    worker.kill()
                    self._workers.remove(worker)
            done = sum(result is not None for result in results)
            progress(done)
            if failed_starts > 3:
                missing = Judgement("grader_error", None, f"the grading worker of {self._import_path} does not start", "worker")
                return [result or missing for result in results]
        return [result for result in results if result is not None]

    def _receive(self, worker: _Worker, results: list[Judgement | None]) -> str:
        """Take what a worker sent; returns why it has to be replaced, or nothing."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return "the grading worker died"
        if worker.item is None:
            worker.ready = True
        else:
            results[worker.item] = message._replace(seconds=time.monotonic() - worker.started)
            worker.item = None
            worker.done += 1
        return ""

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        if self._owner != os.getpid():
            return
        with self._lock:
            for worker in self._workers:
                worker.kill()
            self._workers.clear()
