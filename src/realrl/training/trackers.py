"""Metrics backends beside metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from realrl.config import Config, LogSection
from realrl.errors import ConfigError


class Tracker(Protocol):
    """A metrics backend beside metrics.jsonl."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandbLike:
    """Weights & Biases, or trackio, which offers the same calls."""

    def __init__(self, module: Any, run_dir: Path, config: dict[str, Any]) -> None:
        self._module = module
        module.init(project="realrl", name=run_dir.name, config=config)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._module.log(metrics, step=step)

    def close(self) -> None:
        self._module.finish()


def check_trackers(log: LogSection) -> None:
    """Raise ConfigError for a requested backend that is not installed; the error names the extra to install."""
    for name in ("tensorboard", "wandb", "trackio"):
        if getattr(log, name) and importlib.util.find_spec(name) is None:
            raise ConfigError(f"log.{name} = true needs a package that is not installed: pip install 'realrl[{name}]'")


class Trackers:
    """The backends that the recipe asks for.

    Training depends on none of them. One that fails is reported once through `on_fault` and gets no more metrics;
    metrics.jsonl has them all.
    """

    def __init__(self, log: LogSection, run_dir: Path, config: Config, on_fault: Callable[[str], None]) -> None:
        self._on_fault = on_fault
        self._open: dict[str, Tracker] = {}
        for name in ("tensorboard", "wandb", "trackio"):
            if getattr(log, name):
                with self._guarded(name):
                    self._open[name] = _start(name, run_dir, config)

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.log(metrics, step)

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever a backend raises
            self._open.pop(name, None)
            what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self._on_fault(f"log.{name} failed ({what}) and gets no more metrics; metrics.jsonl has them all")


def _start(name: str, run_dir: Path, config: Config) -> Tracker:
    if name == "tensorboard":
        return _TensorBoard(run_dir)
    return _WandbLike(importlib.import_module(name), run_dir, config.model_dump(mode="json"))
