"""The progress of a run is what its checkpoint holds, also in checkpoints of earlier versions."""

import json

import pytest

from realrl.errors import TrainingError
from realrl.training.checkpoint import read_progress
from realrl.training.progress import Progress


def checkpoint(folder, **state):
    folder = folder / f"step_{state['step']}"
    folder.mkdir(exist_ok=True)
    (folder / "trainer.json").write_text(json.dumps({"format": 1, **state}))
    return folder


def test_progress_goes_through_its_checkpoint(tmp_path):
    progress = Progress(seed=3, rounds=7, skipped_updates=4, bad_in_a_row=2, evaluation_due=True)
    assert read_progress(checkpoint(tmp_path, **progress.state())) == progress


def test_a_checkpoint_of_an_earlier_version_lacks_counters(tmp_path):
    assert read_progress(checkpoint(tmp_path, step=5, seed=1)) == Progress(seed=1, rounds=5)
    assert read_progress(checkpoint(tmp_path, step=5)) == Progress(seed=0, rounds=5)


@pytest.mark.parametrize("damage", [{"skipped_updates": []}, {"seed": "x"}])
def test_a_counter_that_is_no_number_is_damage(tmp_path, damage):
    with pytest.raises(ValueError):
        read_progress(checkpoint(tmp_path, step=5, **damage))


def test_another_format_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="has format 2, this version reads 1"):
        read_progress(checkpoint(tmp_path, step=5, format=2))
