"""The names of the files in a run folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from realrl.system.files import file_name

LOCK = "train.lock"
CONFIG = "config.toml"
# The file of a checkpoint that holds the progress of the run.
CHECKPOINT_STATE = "trainer.json"

_EARLIER_CONFIG = re.compile(r"config_until_step_(\d{1,15})\.toml")
_ROLLOUTS = re.compile(r"step_(\d+)\.parquet")


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths of a run's files and folders, whether they exist or not. A `step` is the number of finished rounds."""

    folder: Path

    @property
    def config(self) -> Path:
        """The recipe of the newest rounds."""
        return self.folder / CONFIG

    def config_until(self, step: int) -> Path:
        """The recipe of the rounds up to `step`, where a resumed run went on with another one."""
        return self.folder / f"config_until_step_{step:06}.toml"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def alarms(self) -> Path:
        return self.folder / "alarms.txt"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.json"

    @property
    def lock(self) -> Path:
        return self.folder / LOCK

    @property
    def rollouts(self) -> Path:
        """The folder of the saved rollouts."""
        return self.folder / "rollouts"

    def rollouts_of(self, step: int) -> Path:
        return self.rollouts / f"step_{step:06}.parquet"

    @property
    def evaluations(self) -> Path:
        """The folder of the graded held-out answers."""
        return self.folder / "eval"

    def evaluation_of(self, data_set: str, mode: str, step: int) -> Path:
        return self.evaluations / f"{file_name(data_set)}_{mode}_step_{step:06}.parquet"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    def checkpoint_of(self, step: int) -> Path:
        return self.checkpoints / f"step_{step}"

    def has_checkpoint(self, step: int | None = None) -> bool:
        """Whether a checkpoint of `step`, or any, is there."""
        name = "step_*" if step is None else f"step_{step}"
        return any(self.checkpoints.glob(f"{name}/{CHECKPOINT_STATE}"))

    @property
    def debug(self) -> Path:
        """The folder of the mini-batches whose update was skipped."""
        return self.folder / "debug"

    def bad_update_of(self, step: int, update: int) -> Path:
        return self.debug / f"step_{step:06}_update_{update}.json"

    def earlier_configs(self) -> list[tuple[int, Path]]:
        """(last step, recipe) of the earlier recipes that are there, in order."""
        return _numbered(_EARLIER_CONFIG, self.folder.glob("config_until_step_*.toml"))

    def rollout_files(self) -> list[tuple[int, Path]]:
        """(step, file) of the saved rollouts that are there, in order."""
        return _numbered(_ROLLOUTS, self.rollouts.glob("step_*.parquet"))

    def evaluation_files(self, mode: str, step: int) -> list[Path]:
        """The held-out answers of one mode and step that are there, by name."""
        return sorted(self.evaluations.glob(f"*_{mode}_step_{step:06}.parquet"))


def is_run_folder(folder: Path) -> bool:
    """Whether a run made the folder, or it is empty, as a run that ended at its very beginning leaves it."""
    return not any(folder.iterdir()) or any((folder / name).is_file() for name in (CONFIG, LOCK))


def _numbered(pattern: re.Pattern[str], paths: Iterator[Path]) -> list[tuple[int, Path]]:
    found = ((pattern.fullmatch(path.name), path) for path in paths)
    return sorted((int(match[1]), path) for match, path in found if match)
