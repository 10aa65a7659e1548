"""Worker processes that judge answers under a deadline and a memory limit; one that hangs or dies is killed and replaced.

This module and what a worker imports stay free of torch, so that a worker starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import importlib
import json
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

from realrl.system.platforms import kill_group, limit_memory, peak_memory


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
# Starts in a row that may fail before the judge counts as broken.
_FAILED_STARTS = 3
# Bytes of a judgement; a worker that sends more is not read.
_LARGEST_MESSAGE = 1 << 20
_WORKER = "from realrl.verifier.pool import serve; import sys; serve(*sys.argv[1:])"


def serve(descriptor: str, import_path: str, memory_mib: str, parent: str, *imports: str) -> None:
    """A worker's life: answer items until the pipe closes. It ends with its parent, even in the middle of an item.

    Messages are JSON, so that what a grading library was made to do in a worker stays there.
    """
    # What stops a run may reach all its processes, yet the step in progress still needs its verdicts. A handler,
    # for a verifier's own children would inherit SIG_IGN.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: None)
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    connection = Connection(int(descriptor))
    home, _, name = import_path.partition(":")
    judge: Judge = getattr(importlib.import_module(home), name)
    if not limit_memory(int(memory_mib)):
        threading.Thread(target=_end_beyond, args=(int(memory_mib),), daemon=True).start()
    for module in imports:
        # What cannot be imported is the judge's to say, of each item.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    connection.send_bytes(b"null")
    while True:
        try:
            item = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer = json.dumps(judge(*item))
        except Exception as error:  # noqa: BLE001  whatever a grading library raises, the item alone fails
            answer = json.dumps(Judgement("grader_error", None, f"{type(error).__name__}: {error}"[:200], "worker"))
        connection.send_bytes(answer.encode())


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    # With whatever the judge has started.
    os.killpg(0, signal.SIGKILL)


def _end_beyond(mebibytes: int) -> None:
    """The limit where the system keeps none: memory is looked at whenever the judge lets another thread run."""
    before = peak_memory()
    while peak_memory() - before < mebibytes * 2**20:
        time.sleep(0.02)
    os.killpg(0, signal.SIGKILL)


class _Worker:
    """A process of its own interpreter: neither a caller's unguarded main module nor a daemonic caller stands in the way.

    It leads a process group of its own, so that a Ctrl-C at the terminal is its parent's business alone, and its end is also
    that of the processes which the judge has started.
    """

    def __init__(self, import_path: str, memory_mib: int, imports: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        # Where the caller finds its modules, the judge is found too.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with theirs:
            command = [sys.executable, "-c", _WORKER, str(theirs.fileno()), import_path, str(memory_mib), str(os.getpid())]
            command += imports
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
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
        message = json.dumps(item).encode()
        # It may have died idle: reading from it says so.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message)

    def kill(self) -> None:
        kill_group(self.process.pid)
        self.process.wait()
        self.connection.close()


class JudgePool:
    """`workers` processes of the judge at `import_path` ("module:function"), started at the first call; thread-safe.

    Each item, of what JSON can hold, gets `timeout_s` seconds and each worker `memory_mib` MiB of address space, on macOS of
    main memory; a worker is replaced after `recycle` items, which bounds what a grading library leaks. An item whose worker
    died is judged once more, by another: the system may have ended the worker for what is not the item's fault. `imports` are
    modules that the judge will need, which a worker imports before its first item's seconds run.
    """

    def __init__(
        self,
        import_path: str,
        workers: int = 2,
        timeout_s: float = 5.0,
        memory_mib: int = 1024,
        recycle: int = 2000,
        imports: Sequence[str] = (),
    ) -> None:
        self._import_path = import_path
        self._count = workers
        self._timeout_s = timeout_s
        self._memory_mib = memory_mib
        self._recycle = recycle
        self._imports = imports
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
            try:
                return self._judge(items, progress or (lambda done: None))
            except BaseException:
                # What a worker still works on must not answer an item of the next call.
                self._end_workers()
                raise

    def _judge(self, items: Sequence[tuple[Any, ...]], progress: Callable[[int], None]) -> list[Judgement]:
        results: list[Judgement | None] = [None] * len(items)
        waiting = list(range(len(items)))[::-1]
        died: set[int] = set()
        failed_starts = done = 0
        while done < len(items):
            while len(self._workers) < min(self._count, len(items)):
                self._workers.append(_Worker(self._import_path, self._memory_mib, self._imports))
            for worker in self._workers:
                if worker.ready and worker.item is None and waiting:
                    index = waiting.pop()
                    worker.give(index, items[index], self._timeout_s)
            busy = [worker for worker in self._workers if not worker.ready or worker.item is not None]
            pause = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            answered = wait([worker.connection for worker in busy], timeout=pause)
            for worker in busy:
                item, starting = worker.item, not worker.ready
                if worker.connection in answered:
                    result, lost = self._receive(worker)
                elif time.monotonic() >= worker.deadline:
                    result, lost = _failure(worker, f"no verdict within {self._timeout_s:g} s"), True
                else:
                    continue
                if starting:
                    failed_starts = failed_starts + 1 if lost else 0
                elif item is not None:
                    if result is None and item not in died:
                        died.add(item)
                        waiting.append(item)
                    else:
                        results[item] = result or _failure(worker, "the grading worker died, twice")
                        done += 1
                if lost or worker.done >= self._recycle:
                    worker.kill()
                    self._workers.remove(worker)
            progress(done)
            if failed_starts > _FAILED_STARTS:
                missing = Judgement("grader_error", None, f"the grading worker of {self._import_path} does not start", "worker")
                return [result or missing for result in results]
        return [result for result in results if result is not None]

    def _receive(self, worker: _Worker) -> tuple[Judgement | None, bool]:
        """What a worker sent, None for its start and its death; and whether it died."""
        try:
            message = json.loads(worker.connection.recv_bytes(_LARGEST_MESSAGE))
            judgement = Judgement(*message) if worker.ready else None
        except (EOFError, OSError, ValueError, TypeError):
            return None, True
        worker.ready = True
        worker.done += worker.item is not None
        worker.item = None
        return judgement and judgement._replace(seconds=time.monotonic() - worker.started), False

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        if self._owner != os.getpid():
            return
        with self._lock:
            self._end_workers()

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()


def _failure(worker: _Worker, reason: str) -> Judgement:
    return Judgement("grader_error", None, reason, "deadline", time.monotonic() - worker.started)
