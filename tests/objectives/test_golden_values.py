"""Objectives of the paper against naive float64 loops (`paper_formulas.py`)."""

import pytest
from paper_formulas import CASES, LENGTHS, make_inputs, tables

from realrl.objectives import build_objective


@pytest.mark.parametrize(("config", "formula"), CASES, ids=[str(config) for config, _ in CASES])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient(config, formula, seed):
    policy, old, ref = tables(seed)
    inputs = make_inputs(policy, old, ref)
    loss = build_objective(config).evaluate(inputs).loss
    assert loss.item() == pytest.approx(formula(policy, old, ref), rel=1e-12, abs=1e-14)
    loss.backward()
    gradient = inputs.logprobs_policy.grad
    assert gradient is not None and not gradient[~inputs.loss_mask].any()
    step = 1e-6
    for n, length in enumerate(LENGTHS):
        for t in range(length):
            values = []
            for sign in (1, -1):
                moved = [list(row) for row in policy]
                moved[n][t] += sign * step
                values.append(formula(moved, old, ref))
            assert gradient[n, t].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)
