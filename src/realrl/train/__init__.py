"""Training: `train(config)` runs a recipe from its preflight to its last checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realrl.config import Config
from realrl.errors import ConfigError
from realrl.models.precision import settle_as_before
from realrl.rundir.alarms import take_back_alarms
from realrl.rundir.environment import record_environment
from realrl.rundir.lock import LOCK, RunLock, is_run_folder
from realrl.rundir.metrics import MetricsFile, last_step
from realrl.rundir.segments import check_comparable, write_recipe
from realrl.train.checkpoint import list_checkpoints, load_optimizer, newest_whole, read_state, tidy
from realrl.train.display import Display
from realrl.train.distributed import World, join_world
from realrl.train.forecast import estimate
from realrl.train.loop import StopRequest, train_loop
from realrl.train.recorder import Recorder, writing
from realrl.train.rollouts import Collector
from realrl.train.setup import Run, prepare
from realrl.train.trackers import check_trackers

__all__ = ["Summary", "estimate", "train"]


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended: finished steps and the newest checkpoint; its folder has the rest.

    `signum` is the signal that stopped it before its last step, or 0.
    """

    folder: Path
    steps: int
    total: int
    signum: int
    checkpoint: Path | None


def train(config: Config, *, resume: bool = False, overwrite: bool = False, force: bool = False) -> Summary | None:
    """Run a recipe, with its peers where torchrun started several (then None on all ranks but the first). An existing run
    folder is refused unless `resume` or `overwrite` is given; `resume` begins where there is no folder or no checkpoint was due
    yet, and with `force` goes on with a recipe whose steps cannot be compared with those before.

    Raises ConfigError or DataError for input that cannot be used, before anything is written, and TrainingError for a run
    that must stop.
    """
    with join_world() as world, RunLock(Path(config.run.dir)) as lock:
        summary = _train(config, world, lock, resume=resume, overwrite=overwrite, force=force)
        return summary if world.is_main else None


def _train(config: Config, world: World, lock: RunLock, *, resume: bool, overwrite: bool, force: bool) -> Summary:
    folder = Path(config.run.dir)
    _check_folder(folder, resume=resume, overwrite=overwrite, force=force)
    again = "give the same command again" if resume or overwrite else "start again with --overwrite"
    if world.is_main and folder.exists():
        with writing(folder, again):
            lock.take()
    newest, warnings, changes = None, [], []
    if resume:
        newest, warnings = world.of_main(_resumable(folder, config) if world.is_main else (None, []))
    check_trackers(config.log)
    state = read_state(newest) if newest else {}
    start = int(state.get("step", 0))
    if newest:
        config = settle_as_before(config, folder)
        changes = check_comparable(folder, start, config, force=force)
    run = prepare(config, world, weights=str(newest) if newest else None, start=start)
    config = run.config
    if newest:
        load_optimizer(newest, run.model, run.optimizer)
    with writing(folder, again):
        recorder = _recorder(run, folder, lock, state)
    try:
        recorder.begin(config, newest, state, known_ids=max(run.tokenizer.get_vocab().values()) + 1)
        for note in [*run.notes, *lock.notes, *warnings]:
            recorder.line(note)
        if newest:
            recorder.line(f"resuming {newest} at step {start}")
        for change in changes:
            recorder.line(f"changed after step {start}: {change}")
        if start >= config.train.steps:
            recorder.line(f"the run has its {start} steps; it goes on with --train.steps {start + 1} or more")
        if state.get("evaluation_due", not newest and config.eval.at_start):
            recorder.evaluate(run, start)
        with StopRequest() as stop, Collector(run) as collector:
            steps = train_loop(run, collector, recorder, stop, start)
    finally:
        recorder.close()
        run.grader.close()
    stopped_by = stop.signum if steps < config.train.steps or recorder.evaluation_due else 0
    return Summary(folder, steps, config.train.steps, stopped_by, recorder.last_checkpoint)


def _recorder(run: Run, folder: Path, lock: RunLock, state: dict[str, Any]) -> Recorder:
    """The run folder, emptied for a fresh run, and its recorder; on the first rank alone it writes."""
    config, world = run.config, run.world
    # No rank removes what another still looks at.
    world.wait()
    if not world.is_main:
        return Recorder(folder, world, None, None, config.log)
    if not lock.held:
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise ConfigError(f"another process has just made the run folder {folder}; choose another --run.dir") from error
        lock.take()
    start = int(state.get("step", 0))
    if start == 0:
        _empty(folder)
    tidy(folder / "checkpoints", start, config.checkpoint.keep)
    take_back_alarms(folder / "alarms.txt", start)
    if start < config.train.steps:
        write_recipe(folder, start, config)
    record_environment(folder, world.size, run.rates)
    metrics = MetricsFile(folder / "metrics.jsonl", start, evaluation_due=bool(state.get("evaluation_due")))
    return Recorder(folder, world, Display(config.train.steps, start, rich=config.log.rich), metrics, config.log)


def _empty(folder: Path) -> None:
    """Remove what an earlier run left, but for its lock and, until the new one takes its place, its config: whenever this is
    cut short, the folder is still known for a run's."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (LOCK, "config.toml"):
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


def _resumable(folder: Path, config: Config) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what is to be said of it; None where the run has not begun or came to none: to go on
    is to begin.

    Raises TrainingError where one was due and none is whole.
    """
    if not folder.exists():
        return None, [f"nothing to resume in {folder}, which does not exist: the run begins"]
    checkpoints = folder / "checkpoints"
    begun = folder.exists() and is_run_folder(folder) and not list_checkpoints(checkpoints)
    # The first is due with its own step's record, or where there are no others at the end.
    if begun and last_step(folder / "metrics.jsonl") <= (config.checkpoint.every or config.train.steps - 1):
        return None, ["no checkpoint was made yet: the run begins again"]
    return newest_whole(checkpoints)
