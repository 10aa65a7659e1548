"""Grading in the background: responses are judged while others are still being sampled."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from types import TracebackType

from realrl.rewards.grader import Grader
from realrl.types import Verdict


class Grading:
    """One batch of `count` responses that arrive one by one; a context manager.

    A thread takes what has arrived and scores it together, so that a pool of workers is used whole and the sampler never waits.
    """

    def __init__(self, grader: Grader, count: int) -> None:
        self._grader = grader
        self._verdicts: list[Verdict | None] = [None] * count
        self._arrived: queue.SimpleQueue[tuple[int, str, Sequence[str]] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="grading")

    def submit(self, index: int, response: str, golds: Sequence[str]) -> None:
        """Have the response at `index` graded; returns at once."""
        self._arrived.put((index, response, golds))

    def verdicts(self) -> list[Verdict]:
        """The verdicts of all responses, in order of their index, once the last is there.

        Raises what the grader raised, and AssertionError where a response was never submitted.
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
                judged = self._grader.score([response for _, response, _ in batch], [golds for *_, golds in batch])
                for (index, *_), verdict in zip(batch, judged, strict=True):
                    self._verdicts[index] = verdict
        except BaseException as error:  # noqa: BLE001  raised again in the thread that asks for the verdicts
            self._error = error

    def __enter__(self) -> Grading:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._arrived.put(None)
