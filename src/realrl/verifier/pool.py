"""Worker processes that run a verifier with a deadline and a memory limit. A worker that hangs or dies is replaced.

This module and everything that a worker imports must not import torch, so that workers start fast and stay small.
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
from dataclasses import astuple, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from realrl.system.platforms import kill_group, limit_memory, peak_memory
from realrl.types import Verdict

_START_UP_S = 60.0
# After more failed starts in a row than this, the verifier counts as broken.
_FAILED_STARTS = 3
# A worker that sends a longer verdict (bytes) counts as dead.
_LARGEST_MESSAGE = 1 << 20
_WORKER = "from realrl.verifier.pool import serve; import sys; serve(*sys.argv[1:])"


def serve(descriptor: str, import_path: str, memory_mib: str, parent: str, *imports: str) -> None:
    """The main loop of a worker: grade items until the pipe closes. If the parent ends, the worker ends at once.

    Messages are JSON, not pickle, so that an attack on a grading library in a worker cannot reach the parent.
    """
    # A signal that stops the run may reach all its processes, but the step in progress still needs its verdicts.
    # This uses handlers, because the verifier's child processes would inherit SIG_IGN.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: None)
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    connection = Connection(int(descriptor))
    home, _, name = import_path.partition(":")
    verifier: Callable[..., Verdict] = getattr(importlib.import_module(home), name)
    if not limit_memory(int(memory_mib)):
        threading.Thread(target=_end_beyond, args=(int(memory_mib),), daemon=True).start()
    for module in imports:
        # If an import fails, the verifier reports it with each item.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    connection.send_bytes(b"null")
    while True:
        try:
            item = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer = json.dumps(astuple(verifier(*item)))
        except Exception as error:  # noqa: BLE001  a grading library may raise anything; only this item fails
            failure = Verdict("grader_error", None, f"{type(error).__name__}: {error}"[:200], "worker")
            answer = json.dumps(astuple(failure))
        connection.send_bytes(answer.encode())


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    # The process group includes all processes that the verifier started.
    os.killpg(0, signal.SIGKILL)


def _end_beyond(mebibytes: int) -> None:
    """A memory limit for systems without one: checks memory whenever the verifier lets another thread run."""
    before = peak_memory()
    while peak_memory() - before < mebibytes * 2**20:
        time.sleep(0.02)
    os.killpg(0, signal.SIGKILL)


class _Worker:
    """A process with a new interpreter, which works even if the caller is daemonic or its main module has no guard.

    It leads its own process group: Ctrl-C at the terminal reaches only the parent, and killing the group also ends the
    processes that the verifier started.
    """

    def __init__(self, import_path: str, memory_mib: int, imports: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        # The worker finds modules in the same places as the caller.
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
        # If it died while idle, reading from it will show that.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message)

    def kill(self) -> None:
        kill_group(self.process.pid)
        self.process.wait()
        self.connection.close()


class VerifierPool:
    """`workers` processes that run the verifier at `import_path` ("module:function"). Thread-safe.

    The processes start at the first call. Items must be JSON values. Each item gets `timeout_s` seconds; each worker gets
    `memory_mib` MiB of address space (on macOS: of memory). A worker is replaced after `recycle` items, which limits memory
    leaks. If a worker dies, another one grades its item once more, since the system may have killed it for another reason.
    `imports` names modules that a worker imports before it receives an item, so that this takes no time from the item.
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

    def grade(self, items: Sequence[tuple[Any, ...]], progress: Callable[[int], None] | None = None) -> list[Verdict]:
        """One verdict for each item (the verifier's arguments), in order; an item that hangs or crashes gets `grader_error`.

        `progress` is called with the number of finished items.
        """
        if self._owner != os.getpid():
            # After a fork, the workers belong to the parent.
            self._workers, self._lock, self._owner = [], threading.Lock(), os.getpid()
        with self._lock:
            try:
                return self._grade(items, progress or (lambda done: None))
            except BaseException:
                # A worker may still have an item of this call; its verdict must not reach the next call.
                self._end_workers()
                raise

    def _grade(self, items: Sequence[tuple[Any, ...]], progress: Callable[[int], None]) -> list[Verdict]:
        results: list[Verdict | None] = [None] * len(items)
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
                missing = Verdict("grader_error", None, f"the grading worker of {self._import_path} does not start", "worker")
                return [result or missing for result in results]
        return [result for result in results if result is not None]

    def _receive(self, worker: _Worker) -> tuple[Verdict | None, bool]:
        """The verdict that a worker sent (None if it started or died), and whether it died."""
        try:
            message = json.loads(worker.connection.recv_bytes(_LARGEST_MESSAGE))
            verdict = Verdict(*message) if worker.ready else None
        except (EOFError, OSError, ValueError, TypeError):
            return None, True
        worker.ready = True
        worker.done += worker.item is not None
        worker.item = None
        return verdict and replace(verdict, seconds=time.monotonic() - worker.started), False

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


def _failure(worker: _Worker, reason: str) -> Verdict:
    return Verdict("grader_error", None, reason, "deadline", time.monotonic() - worker.started)
