"""Which records ring which alarm: thresholds computed by hand, healthy runs silent."""

import math
import random

import pytest

from realrl.rundir.alarms import Alarms


def rounds(**series):
    """Records of rounds; each series is a metric, with _ for /."""
    names = {"reward": "reward/mean", "entropy": "policy/entropy", "length": "response/length_mean", "norm": "grad/norm"}
    columns = {names[key]: values for key, values in series.items()}
    columns.setdefault("reward/mean", [0.5] * len(next(iter(series.values()))))
    rows = zip(*columns.values(), strict=True)
    return [{"step": step, "kind": "round", **dict(zip(columns, row, strict=True))} for step, row in enumerate(rows, start=1)]


def rung(records):
    alarms = Alarms()
    return [(record["step"], alarm.text.partition(":")[0], alarm.kind) for record in records for alarm in alarms.check(record)]


def evaluation(step, accuracy, problems=100):
    error = math.sqrt(accuracy * (1 - accuracy) / problems)
    return {"step": step, "kind": "evaluation", "eval/a/b/sampled/accuracy": accuracy, "eval/a/b/sampled/standard_error": error}


@pytest.mark.parametrize(
    "accuracies, problems, expected",
    [
        ([0.47, 0.6, 0.0, 0.0], 128, [2]),
        ([0.47, 0.85, 0.41], 128, [2]),
        # At half of the best.
        ([0.4, 0.8, 0.4], 128, []),
        # Eight problems: 0.75 ± 0.153 and 0.25 ± 0.153 lie 2.3 errors apart.
        ([0.75, 0.25], 8, []),
        ([0.75, 0.0], 8, [1]),
        ([0.0, 0.0, 0.1], 128, []),
        # It recovers and falls again: one alarm tells it all.
        ([0.8, 0.1, 0.8, 0.1], 128, [1]),
    ],
)
def test_a_held_out_accuracy_that_falls_below_half_of_its_best_rings_once(accuracies, problems, expected):
    found = rung(evaluation(step, accuracy, problems) for step, accuracy in enumerate(accuracies))
    assert found == [(step, "held-out accuracy collapsed", "collapse") for step in expected]


def test_each_held_out_set_and_mode_has_its_own_best():
    records = [evaluation(0, 0.9), {**evaluation(5, 0.9), "eval/a/b/greedy/accuracy": 0.1}, evaluation(9, 0.8)]
    assert rung(records) == []


def test_a_reward_that_falls_rings_when_the_mean_of_ten_rounds_is_below_half_of_the_best_ten():
    rewards = [0.6 + 0.02 * (-1) ** i for i in range(20)] + [0.1 + 0.02 * (-1) ** i for i in range(20)]
    # The mean of ten rounds, k of them low, is 0.6 - 0.05 k: below 0.3 from k = 7 on, at round 27. Neighbours differ by 0.04,
    # at the fall by 0.46: σ² = (25 · 0.04² + 0.46²) / 52; the error of a difference is √(2 σ² / 10) = 0.031, six of them 0.19.
    assert rung(rounds(reward=rewards)) == [(27, "the reward collapsed", "collapse")]


def test_noise_of_small_rounds_and_slow_learning_are_silent():
    # Rounds of eight rollouts: right with 0.2 to 0.8, with 0.1, with 0.02.
    for seed, (first, rise) in enumerate([(0.2, 0.6), (0.1, 0.0), (0.02, 0.0)]):
        draw = random.Random(seed).random
        rewards = [sum(draw() < first + rise * i / 2000 for _ in range(8)) / 8 for i in range(2000)]
        assert rung(rounds(reward=rewards)) == []


def test_entropy_length_and_gradient():
    # The mean of ten rounds, k of them new, crosses its threshold at k = 10, 9 and 7, and rings at the third such round.
    ten = [1.0] * 10
    assert rung(rounds(entropy=ten + [0.05] * 20)) == [(22, "the entropy collapsed", "entropy")]
    assert rung(rounds(entropy=ten + [0.05] * 20, reward=[0.5] * 10 + [0.9] * 20)) == []
    assert rung(rounds(entropy=ten + [4.5] * 20)) == [(21, "the entropy exploded", "entropy")]
    assert rung(rounds(length=ten + [2.5] * 20)) == [(19, "responses grow without a higher reward", "length")]
    assert rung(rounds(length=ten + [2.5] * 20, reward=[0.5] * 10 + [0.6] * 20)) == []
    assert rung(rounds(norm=[1.0] * 10 + [29.0] + [1.0] * 10)) == []
    ((step, text, kind),) = rung(rounds(norm=[1.0] * 10 + [11.0] * 3))
    assert (step, kind) == (13, "gradient") and text.startswith("the gradient norm jumped to 11, more than 10 times")
    # Rounds without a computed rollout have no entropy and no gradient: their 0 counts for neither.
    idle = [record | {"compute/rollouts_share": float(record["step"] <= 10)} for record in rounds(entropy=ten + [0.0] * 20)]
    assert rung(idle) == []


def test_odd_values_ring_nothing():
    odd = [math.inf, "x", None, [], 10**400, 1e200, -1e200, True]
    of_rounds = {"reward/mean", "grad/norm", "eval/a/accuracy"}
    assert rung([{"step": 1, "kind": "round", **dict.fromkeys(of_rounds, value)} for value in odd * 5]) == []
    assert rung([{"step": 1, "kind": "evaluation", "eval/a/b/c/accuracy": value} for value in odd]) == []


def test_a_value_that_is_not_finite_is_as_one_that_was_not_recorded():
    records = rounds(entropy=[1.0] * 10 + [math.nan] * 3 + [0.05] * 20)
    saved = [{name: value for name, value in record.items() if value == value} for record in records]
    assert rung(records) == rung(saved) == [(25, "the entropy collapsed", "entropy")]
