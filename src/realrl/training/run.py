"""A run from its preflight to its last checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realrl.config import Config, load_config
from realrl.errors import ConfigError
from realrl.models.precision import settle_as_before
from realrl.rundir.alarms import take_back_alarms
from realrl.rundir.closing import closing_lines
from realrl.rundir.environment import record_environment
from realrl.rundir.lock import RunLock
from realrl.rundir.metrics import MetricsFile, last_round
from realrl.rundir.paths import CONFIG, LOCK, RunPaths, is_run_folder
from realrl.rundir.segments import check_comparable, write_recipe
from realrl.training.checkpoint import list_checkpoints, load_optimizer, newest_whole, read_progress, tidy
from realrl.training.display import Display
from realrl.training.distributed import World, join_world
from realrl.training.evaluation import evaluate_held_out
from realrl.training.loop import train_loop
from realrl.training.progress import Progress
from realrl.training.recorder import Recorder, writing
from realrl.training.rollouts import Collector
from realrl.training.setup import Run, prepare
from realrl.training.stop import StopRequest
from realrl.training.trackers import check_trackers


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended; printed, it shows the held-out accuracy before and after.

    `folder`: the run folder. `steps`: finished rounds of `total`. `signum`: the signal that stopped the run early, or 0.
    `checkpoint`: the newest one.
    """

    folder: Path
    steps: int
    total: int
    signum: int
    checkpoint: Path | None

    def __str__(self) -> str:
        head = f"{self.folder}: {self.steps} of {self.total} rounds, newest checkpoint: {self.checkpoint or 'none'}"
        return "\n".join([head, *closing_lines(self.folder, 0)])


def train(
    recipe: str | Path | Config,
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
) -> Summary | None:
    """Train a model with a recipe: the path of its file, or a `Config`.

    `overrides` replace values of the file by dotted name, e.g. `{"optim.lr": 1e-4}`. An existing run folder is refused unless
    `resume` or `overwrite` is given. `resume` continues from the newest checkpoint, or begins the run if there is none yet.
    With `force` it continues even if the recipe changed so that its rounds cannot be compared with earlier ones.

    Under torchrun all ranks call it; only the first returns a summary.

    Raises ConfigError or DataError for unusable input, before anything is written, and TrainingError for a run that must stop.
    """
    if not isinstance(recipe, Config):
        config = load_config(recipe, overrides)
    elif overrides:
        raise ConfigError("overrides need the path of a recipe, not a Config; set the values in the Config")
    else:
        config = recipe
    with join_world() as world, RunLock(Path(config.run.dir)) as lock:
        summary = _train(config, world, lock, resume=resume, overwrite=overwrite, force=force)
        return summary if world.is_main else None


def _train(config: Config, world: World, lock: RunLock, *, resume: bool, overwrite: bool, force: bool) -> Summary:
    paths = RunPaths(Path(config.run.dir))
    _check_folder(paths.folder, resume=resume, overwrite=overwrite, force=force)
    again = "give the same command again" if resume or overwrite else "start again with --overwrite"
    if world.is_main and paths.folder.exists():
        with writing(paths.folder, again):
            lock.take()
    newest, warnings, changes = None, [], []
    if resume:
        newest, warnings = world.of_main(_resumable(paths, config) if world.is_main else (None, []))
    check_trackers(config.log)
    progress = Progress(config.run.seed, evaluation_due=config.eval.at_start)
    if newest:
        # The seed is the recipe's, which --force may change.
        progress = replace(read_progress(newest), seed=config.run.seed)
        config = settle_as_before(config, load_config(paths.config))
        changes = check_comparable(paths.folder, progress.rounds, config, force=force)
    run = prepare(config, world, weights=str(newest) if newest else None, start=progress.rounds)
    config, start = run.config, progress.rounds
    if newest:
        load_optimizer(newest, run.model, run.optimizer)
    with writing(paths.folder, again):
        recorder = _recorder(run, paths, lock, progress)
    try:
        recorder.begin(config, newest, start, known_ids=max(run.tokenizer.get_vocab().values()) + 1)
        for note in [*run.notes, *lock.notes, *warnings]:
            recorder.line(note)
        if newest:
            recorder.line(f"resuming {newest} at step {start}")
        for change in changes:
            recorder.line(f"changed after step {start}: {change}")
        if start >= config.train.steps:
            recorder.line(f"the run has its {start} steps; it goes on with --train.steps {start + 1} or more")
        if progress.evaluation_due:
            evaluate_held_out(run, recorder, progress)
        with StopRequest() as stop, Collector(run) as collector:
            train_loop(run, collector, recorder, progress, stop)
    finally:
        recorder.close()
        run.grader.close()
    unfinished = progress.rounds < config.train.steps or progress.evaluation_due
    return Summary(
        paths.folder, progress.rounds, config.train.steps, stop.signum if unfinished else 0, recorder.last_checkpoint
    )


def _recorder(run: Run, paths: RunPaths, lock: RunLock, progress: Progress) -> Recorder:
    """The recorder of a run folder, which is emptied for a fresh run; only the first rank writes."""
    config, world = run.config, run.world
    # No rank removes what another still reads.
    world.wait()
    if not world.is_main:
        return Recorder(paths.folder, world, None, None, config.log)
    if not lock.held:
        try:
            paths.folder.mkdir(parents=True)
        except FileExistsError as error:
            raise ConfigError(
                f"another process has just made the run folder {paths.folder}; choose another --run.dir"
            ) from error
        lock.take()
    start = progress.rounds
    if start == 0:
        _empty(paths.folder)
    tidy(paths.checkpoints, start, config.checkpoint.keep)
    take_back_alarms(paths.alarms, start)
    if start < config.train.steps:
        write_recipe(paths.folder, start, config)
    record_environment(paths.folder, world.size, run.rates)
    metrics = MetricsFile(paths.metrics, start, evaluation_due=progress.evaluation_due)
    return Recorder(paths.folder, world, Display(config.train.steps, start, rich=config.log.rich), metrics, config.log)


def _empty(folder: Path) -> None:
    """Remove what an earlier run left, except its lock and its config, which the new one replaces.

    If this is cut short, the folder is still recognised as a run's.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (LOCK, CONFIG):
            path.unlink()


def _check_folder(folder: Path, *, resume: bool, overwrite: bool, force: bool) -> None:
    """ConfigError for a folder that this start may not write to."""
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if force and not resume:
        raise ConfigError("--force goes with --resume alone: it goes on with a recipe that cannot be compared")
    if resume:
        return
    if folder.exists() and not overwrite:
        raise ConfigError(
            f"the run folder {folder} exists; --resume continues it, --overwrite replaces it, --run.dir names another"
        )
    # Only a folder that a run made is ever removed.
    if folder.exists() and not is_run_folder(folder):
        raise ConfigError(f"{folder} is not a run folder (no config.toml), so --overwrite leaves it alone; choose --run.dir")


def _resumable(paths: RunPaths, config: Config) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, and notes on it; None where the run has to begin, because no checkpoint was due yet.

    Raises TrainingError where a checkpoint was due and none is whole.
    """
    if not paths.folder.exists():
        return None, [f"nothing to resume in {paths.folder}, which does not exist: the run begins"]
    begun = is_run_folder(paths.folder) and not list_checkpoints(paths.checkpoints)
    # The first is due after round `checkpoint.every`, or after the last round.
    if begun and last_round(paths.metrics) <= (config.checkpoint.every or config.train.steps - 1):
        return None, ["no checkpoint was made yet: the run begins again"]
    return newest_whole(paths.checkpoints)
