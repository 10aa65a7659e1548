"""Worker processes that judge answers under a wall-clock deadline; one that hangs or dies is killed and replaced.

This module and what a worker imports stay free of torch, so that a worker starts fast and stays small.
"""

from __future__ import annotations

import importlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait

# (status, extracted, reason), the plain form of a Verdict.
Judgement = tuple[str, str | None, str]
Judge = Callable[[str, str], Judgement]

_START_UP_S = 60.0


def _work(connection: Connection, import_path: str) -> None:
    """Worker: answer (response, gold) until the pipe closes, which it also does when the parent dies."""
    module, _, name = import_path.partition(":")
    judge: Judge = getattr(importlib.import_module(module), name)
    connection.send("ready")
    while True:
        try:
            response, gold = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            result = judge(response, gold)
        except Exception as error:  # noqa: BLE001  whatever a grading library raises, the item alone fails
            result = ("grader_error", None, f"{type(error).__name__}: {error}"[:200])
        connection.send(result)


class _Worker:
    def __init__(self, import_path: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_work, args=(child, import_path), daemon=True)
        self.process.start()
        child.close()
        self.ready = False
        self.item: int | None = None
        self.deadline = time.monotonic() + _START_UP_S

    def give(self, index: int, response: str, gold: str, timeout_s: float) -> None:
        self.connection.send((response, gold))
        self.item, self.deadline = index, time.monotonic() + timeout_s

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class JudgePool:
    """`workers` processes of the judge at `import_path` ("module:function"), started at the first call; thread-safe."""

    def __init__(self, import_path: str, workers: int = 2, timeout_s: float = 5.0) -> None:
        self._import_path = import_path
        self._count = workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement]:
        """One judgement for each (response, gold), in order; a hang or a crash is `grader_error` for that item alone."""
        with self._lock:
            return self._judge(pairs)

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement]:
        results: list[Judgement | None] = [None] * len(pairs)
        waiting = list(range(len(pairs)))[::-1]
        failed_starts = 0
        while any(result is None for result in results):
            while len(self._workers) < min(self._count, max(len(pairs), 1)):
                self._workers.append(_Worker(self._import_path))
            for worker in self._workers:
                if worker.ready and worker.item is None and waiting:
                    index = waiting.pop()
                    worker.give(index, *pairs[index], self._timeout_s)
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
                if fault:
                    failed_starts += not worker.ready
                    if worker.item is not None:
                        results[worker.item] = ("grader_error", None, fault)
                    worker.kill()
                    self._workers.remove(worker)
            if failed_starts > 3:
                missing = ("grader_error", None, "the grading worker does not start")
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
            results[worker.item], worker.item = message, None
        return ""

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        with self._lock:
            for worker in self._workers:
                worker.kill()
            self._workers.clear()
