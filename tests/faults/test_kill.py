"""kill -9 at any moment: the run goes on, and ends as the one that was never killed, bit for bit."""

import json
import random
import signal
import time
from collections import Counter

import pytest
from children import PHASES, Aim, train_child
from small_runs import CAMPAIGN, assert_same_run

from realrl.training.checkpoint import list_checkpoints, newest_whole

KILLS = 60 if CAMPAIGN else 4
# Each run is killed this often, then left to its end.
KILLS_A_RUN = 6 if CAMPAIGN else 4
# Groups of one are never mixed: an alarm rings at the third step, and once.
SECTIONS = {
    "train": {"steps": 8, "prompts_per_step": 16, "mini_batch_prompts": 8},
    "sampling": {"group_size": 1},
    "objective": {"type": "real", "degenerate_groups": "use"},
    "checkpoint": {"every": 1, "keep": 2},
}


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    """The run that is not killed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("whole")
    # Once before, for the parent of the children to import everything.
    for name in ("first", "run"):
        began = time.monotonic()
        child = train_child(tiny_folder, folder / name, **SECTIONS)
        assert child.wait() == 0, child.out()
    rung = (folder / "run" / "alarms.txt").read_text()
    assert rung.startswith("step 3: ALARM: every group is all right or all wrong") and rung.count("\n") == 1
    return folder / "run", time.monotonic() - began


# What a start does once or twice at most.
RARE = ("emptying", "config", "rewinding", "alarms")


def aims(rng):
    """Kills in turn: at a random time (None), and at a phase, of which short ones are met at their very beginning alone."""
    phases = [phase for phase in PHASES if phase != "emptying"]
    rng.shuffle(phases)
    while True:
        for phase in phases:
            yield None
            yield Aim(phase, 1 if phase in RARE else rng.randint(1, 2), 0 if phase in RARE else rng.choice([0, 0, 0.001, 0.01]))


def options(run, rng):
    """What a user, or `realrl sweep`, starts the run with again."""
    if not run.exists():
        return []
    return ["--resume"] if list_checkpoints(run / "checkpoints") else [rng.choice(["--resume", "--overwrite"])]


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(tiny_folder, whole, tmp_path):
    (whole, seconds), number = whole, 0
    rng, plan, struck = random.Random(0), aims(random.Random(1)), Counter()
    while sum(struck.values()) < KILLS:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        run, kills = folder / "run", 0
        while True:
            again = options(run, rng)
            aim = next(plan) if kills < KILLS_A_RUN else None
            if again and not list_checkpoints(run / "checkpoints") and kills < KILLS_A_RUN and rng.random() < 0.5:
                aim = Aim("emptying", 1, rng.choice([0, 0.001]))
            child = train_child(tiny_folder, run, *again, aim=aim, **SECTIONS)
            if aim is None and kills < KILLS_A_RUN and child.wait(rng.uniform(0, seconds)) is None:
                child.process.kill()
            status = child.wait()
            if status == 0:
                break
            assert status == -signal.SIGKILL, child.out()
            kills += 1
            struck[child.phase()] += 1
            if list_checkpoints(run / "checkpoints"):
                newest, warnings = newest_whole(run / "checkpoints")
                assert newest == list_checkpoints(run / "checkpoints")[-1] and not warnings
        assert_same_run(run, whole)
        starts = json.loads((run / "environment.json").read_text())
        assert 1 <= len(starts) <= kills + 1
    print(f"{sum(struck.values())} kills in {number} runs, by what they struck: {dict(struck.most_common())}")
