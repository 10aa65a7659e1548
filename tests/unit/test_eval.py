import itertools
import json
import statistics

import pytest

from realrl.analysis.figures import learning_curve
from realrl.eval import pass_at_k
from realrl.eval.passk import mean_and_standard_error


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (5, 3), (5, 5), (1, 1)])
def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_sample(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("arguments", [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_pass_at_k_refuses_impossible_counts(arguments):
    with pytest.raises(ValueError, match="it needs"):
        pass_at_k(*arguments)


def test_standard_error_is_that_of_the_problem_means():
    mean, error = mean_and_standard_error([[1, 0], [1, 1], [0, 0]])
    assert mean == pytest.approx(0.5)
    assert error == pytest.approx(statistics.stdev([0.5, 1, 0]) / 3**0.5)
    assert mean_and_standard_error([[1, 0]]) == (0.5, 0.0)


def test_learning_curve_is_drawn(tmp_path):
    records = [
        {"step": 0, "eval/addition/sampled/accuracy": 0.2, "eval/addition/sampled/standard_error": 0.05},
        *[{"step": s, "reward/mean": s / 10, "format/boxed_share": 1.0} for s in range(1, 9)],
        {"step": 8, "eval/addition/sampled/accuracy": 0.8, "eval/addition/sampled/standard_error": 0.05},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    learning_curve(tmp_path, tmp_path / "curve.png")
    data = (tmp_path / "curve.png").read_bytes()
    assert data[:4] == b"\x89PNG" and len(data) > 10_000
