"""`realrl` commands as children (forked.py) that can be killed anywhere.

A child marks what it is doing, so that a kill can be aimed at it, and the place where it struck be told.
"""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from forked import context
from small_runs import HERE, recipe

# What a run does, and the functions in which it does it.
PHASES = {
    "emptying": ["realrl.training.run:_empty"],
    "config": ["realrl.training.run:write_recipe", "realrl.training.run:record_environment"],
    "rewinding": ["realrl.training.run:MetricsFile", "realrl.training.run:take_back_alarms"],
    "sampling": ["realrl.training.rollouts:Collector._sample"],
    "grading": ["realrl.rewards:Grading.verdicts"],
    "backward": ["realrl.training.gradient:MiniBatchGradient.backward"],
    "optimizer": ["torch.optim:AdamW.step"],
    "metrics": ["realrl.rundir.metrics:MetricsFile.write"],
    "alarms": ["realrl.training.recorder:Recorder.alarm"],
    "rollouts": ["realrl.training.recorder:write_rollouts"],
    "evaluating": ["realrl.training.run:evaluate_held_out", "realrl.training.loop:evaluate_held_out"],
    "checkpoint": ["realrl.training.checkpoint:_write_checkpoint"],
    "naming": ["realrl.training.checkpoint:_put"],
    "pruning": ["realrl.training.checkpoint:_remove"],
}


@dataclass(frozen=True)
class Aim:
    """Kill -9 at the `occurrence`-th entry into a phase, `delay_s` later."""

    phase: str
    occurrence: int
    delay_s: float


class Child:
    """A command in progress; `phase()` is what it does, or did when it ended."""

    def __init__(self, arguments: list[str], folder: Path, aim: Aim | None = None) -> None:
        self._out, self._phase = folder / "out.txt", folder / "phase.txt"
        self._out.write_bytes(b"")
        self._phase.unlink(missing_ok=True)
        self.process = context(HERE).Process(target=_run, args=(arguments, str(self._out), str(self._phase), aim))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def out(self) -> str:
        return self._out.read_text(errors="replace")

    def phase(self) -> str:
        return self._phase.read_text().strip() if self._phase.exists() else "starting"

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status, negative for a signal; None where it still runs."""
        self.process.join(timeout_s)
        return self.process.exitcode

    def wait_for(self, text: str) -> None:
        """Until the output holds `text`."""
        while text not in self.out():
            assert self.wait(0.02) is None, self.out()


def train_child(model: Path, run: Path, *options: str, aim: Aim | None = None, **sections) -> Child:
    """`realrl train` on the recipe of `small_runs`."""
    file = run.parent / f"{run.name}.toml"
    file.write_text(tomli_w.dumps(recipe(model, run, **sections)))
    return Child(["train", str(file), *options], run.parent, aim)


def _run(arguments: list[str], out: str, phase: str, aim: Aim | None) -> None:
    # What is sent to the run's process group does not reach the test.
    os.setsid()
    descriptor = os.open(out, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    _mark(phase, aim)
    sys.argv = ["realrl", *arguments]
    from realrl.cli import main

    main()


def _mark(file: str, aim: Aim | None) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    stack = ["starting"]
    entries: dict[str, int] = {}

    def say() -> None:
        os.pwrite(descriptor, stack[-1].ljust(16).encode(), 0)

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(function, name):
        def marked(*arguments, **keywords):
            stack[0] = "between"
            stack.append(name)
            say()
            entries[name] = entries.get(name, 0) + 1
            if aim and (aim.phase, aim.occurrence) == (name, entries[name]):
                threading.Timer(aim.delay_s, kill).start() if aim.delay_s else kill()
            try:
                return function(*arguments, **keywords)
            finally:
                stack.pop()
                say()

        return marked

    say()
    for name, places in PHASES.items():
        for place in places:
            module, _, path = place.partition(":")
            owner = __import__(module, fromlist=["_"])
            *inner, last = path.split(".")
            for part in inner:
                owner = getattr(owner, part)
            setattr(owner, last, wrapped(getattr(owner, last), name))
