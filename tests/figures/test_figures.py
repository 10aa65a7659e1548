import json

import matplotlib.image
import matplotlib.pyplot as plt
import pytest

from realrl.figures.learning_curve import learning_curve

STEPS = [{"step": s, "reward/mean": s / 10, "format/boxed_share": 1.0} for s in range(1, 9)]
SAMPLED = [
    {"step": step, "eval/addition/sampled/accuracy": accuracy, "eval/addition/sampled/standard_error": 0.05}
    for step, accuracy in [(0, 0.2), (8, 0.8)]
]
GREEDY = [{"step": 0, "eval/addition/greedy/accuracy": 0.3}]


def draw(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    learning_curve(folder, folder / "curve.png")
    return matplotlib.image.imread(folder / "curve.png")[..., :3]


def coloured(image):
    """Pixels that are not gray: axes, grid, text and the boxed share are gray, data are not."""
    return int((image.max(axis=2) - image.min(axis=2) > 0.1).sum())


def test_learning_curve_is_drawn(tmp_path):
    image = draw(tmp_path, STEPS + SAMPLED)
    assert image.shape == (675, 1200, 3)  # 8 × 4.5 inches at 150 dpi
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert coloured(image) > coloured(draw(tmp_path, STEPS)) > 1000
    assert not plt.get_fignums()


def test_a_broken_line_is_left_out(tmp_path):
    whole = draw(tmp_path, STEPS)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in STEPS[:4]) + "\x00\x00{\n")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in STEPS[4:]))
    learning_curve(tmp_path, tmp_path / "curve.png")
    assert (matplotlib.image.imread(tmp_path / "curve.png")[..., :3] == whole).all()


@pytest.mark.filterwarnings("error")
def test_a_run_without_a_step_gives_empty_axes(tmp_path):
    assert coloured(draw(tmp_path, [])) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "records",
    [
        SAMPLED,
        [{"step": 1, "reward/mean": 0.5}],
        [{"step": 1, "format/boxed_share": 0.5}],
        [{"step": 1, "reward/mean": 0.5}, *STEPS[1:]],
        STEPS + GREEDY,
    ],
    ids=["only held-out", "no boxed share", "only boxed share", "boxed share of some steps", "greedy without error"],
)
def test_what_a_run_did_not_record_is_left_out(tmp_path, records):
    # Not the empty axes: what was recorded is drawn.
    assert not (draw(tmp_path, records) == draw(tmp_path, [])).all()
