"""Figure 1 and its like: the CSVs against the paper's equations written out here, the lines against the dots."""

import csv
import math
from collections import defaultdict

import pytest

from realrl.figures.canvas import panels, save, style
from realrl.figures.write import write_figures
from realrl.objectives import list_objectives


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    report = write_figures([], folder)
    assert not report.skipped
    assert report.written == [
        folder / f"{name}.{suffix}"
        for name in ("figure_1", "figure_1_objectives", "figure_1_tau")
        for suffix in ("png", "svg", "csv")
    ]
    return folder


def curves(path, *keys):
    found = defaultdict(list)
    for row in rows_of(path):
        found[tuple(row[key] for key in keys)].append((float(row["log_ratio"]), float(row["weight"])))
    return found


def real_weight(s, reward, tau, others=4):
    """Eq. 9 and 10: `others` is the anchor's 1 and e^(∓s̄/τ) of the label's other responses, here three with s̄ = 0."""
    own = math.exp(-s / tau) if reward else math.exp(s / tau)
    return (-1 if reward else 1) / tau * own / (others + own)


def grpo_weight(s, reward):
    """Derivative of −min(ρA, clip(ρ, 0.8, 1.2)A) in log ρ for A = ±1."""
    ratio = math.exp(s)
    if reward:
        return -ratio if ratio <= 1.2 else 0.0
    return ratio if ratio >= 0.8 else 0.0


def test_figure_1_is_the_papers(folder):
    found = curves(folder / "figure_1.csv", "objective", "reward")
    assert set(found) == {("grpo", "1"), ("grpo", "0"), ("real", "1"), ("real", "0")}
    for (name, reward), points in found.items():
        assert len(points) == 200 and points[0][0] == -2 and points[-1][0] == 2
        for s, weight in points:
            expected = real_weight(s, int(reward), 0.5) if name == "real" else grpo_weight(s, int(reward))
            assert weight == pytest.approx(expected, rel=2e-6, abs=1e-12)


def test_three_temperatures(folder):
    found = curves(folder / "figure_1_tau.csv", "tau", "reward")
    assert {float(tau) for tau, _ in found} == {0.1, 0.5, 1.0}
    for (tau, reward), points in found.items():
        assert all(w == pytest.approx(real_weight(s, int(reward), float(tau)), rel=1e-5, abs=1e-12) for s, w in points)
        assert max(abs(w) for _, w in points) <= 1 / float(tau)


@pytest.mark.parametrize("name", ["figure_1", "figure_1_objectives", "figure_1_tau"])
def test_every_dot_lies_on_its_line(folder, name):
    rows = rows_of(folder / f"{name}.csv")
    for row in rows:
        assert float(row["formula"]) == pytest.approx(float(row["weight"]), rel=1e-5, abs=1e-9), row


def test_every_objective_is_there_and_pushes_the_right_way(folder):
    found = curves(folder / "figure_1_objectives.csv", "objective", "reward")
    assert {name for name, _ in found} == set(list_objectives())
    for (name, reward), points in found.items():
        sign = -1 if reward == "1" else 1
        assert all(sign * weight >= 0 for _, weight in points), name
        assert any(weight for _, weight in points), name


def test_the_same_data_give_the_same_files(tmp_path):
    written = []
    for name in ("first", "second"):
        with style():
            figure, (axis,) = panels(1, 1, (2, 2))
            axis.fill_between([0, 1], [0, 1])
            written.append([path.read_bytes() for path in save(figure, [{"x": 0.5, "y": ""}], tmp_path / name, "figure")])
    assert written[0] == written[1]
    assert written[0][2] == b"x,y\r\n0.5,\r\n"
