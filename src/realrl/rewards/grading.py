"""Grade responses in the background while others are still being sampled."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from types import TracebackType

from realrl.rewards.grader import Grader
from realrl.types import Verdict


class Grading:
    """A context manager that grades `count` responses, which arrive one by one.

    A thread grades all responses that have arrived together, so that the pool is fully used and the sampler never waits.
    """

    def __init__(self, grader: Grader, count: int) -> None:
        self._grader = grader
        self._verdicts: list[Verdict | None] = [None] * count
        self._arrived: queue.SimpleQueue[tuple[int, str, Sequence[str]] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="grading")

    def submit(self, index: int, response: str, golds: Sequence[str]) -> None:
        """Queue the response at `index` for grading; returns at once."""
        self._arrived.put((index, response, golds))

    def verdicts(self) -> list[Verdict]:
        """Wait for the verdicts of all responses, in the order of their index.

        Raises the grader's error, if there was one, and AssertionError if a response was never submitted.
        """
        self._arrived.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        done = [verdict for verdict in self._verdicts if verdict is not None]
        if len(done) != len(self._verdicts):
            raise AssertionError(f"{len(self._verdicts) - len(done)} of {len(self._verdicts)} responses were not submitted")
        return done

    def _work(self) -> None:
        try:
            open_ended = True
            while open_ended:
                items = [self._arrived.get()]
                while not self._arrived.empty():
                    items.append(self._arrived.get())
                open_ended = None not in items
                batch = [item for item in items if item is not None]
                graded = self._grader.score([response for _, response, _ in batch], [golds for *_, golds in batch])
                for (index, *_), verdict in zip(batch, graded, strict=True):
                    self._verdicts[index] = verdict
        except BaseException as error:  # noqa: BLE001  raised again in the thread that calls verdicts()
            self._error = error

    def __enter__(self) -> Grading:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._arrived.put(None)
