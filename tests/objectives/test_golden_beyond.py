"""Objectives beyond the paper against naive float64 loops over scalars, written from the formulas alone.

The formulas are autograd scalars, so that a stopped gradient is one in the reference too.
"""

import pytest
import torch
from paper_formulas import CASES as PAPER_CASES

from realrl.objectives import LossInputs, build_objective, list_objectives

REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
# Ragged, in any order: group 7 holds 5 mixed rollouts, 3 holds 2 right ones, 5 holds 2 mixed, 9 one wrong.
GROUPS = [7, 7, 5, 3, 7, 7, 3, 5, 9, 7]
LENGTHS = [3, 1, 4, 2, 5, 2, 1, 3, 2, 4]
ROWS = range(len(REWARDS))
TOKENS = sum(LENGTHS)


def tables(seed):
    """Log-probabilities (policy, old); the policy's are scalars with a gradient. Ratios lie between e^−1.2 and e^1.2."""
    rng = torch.Generator().manual_seed(seed)
    policy, old = (-1.2 * torch.rand(len(REWARDS), max(LENGTHS), generator=rng, dtype=torch.float64) for _ in range(2))
    if seed == 2:  # right after sampling
        policy = old.clone()
    return [[value.clone().requires_grad_(True) for value in row] for row in policy], old


def make_inputs(policy, old) -> LossInputs:
    loss_mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    table = torch.tensor([[value.item() for value in row] for row in policy], dtype=torch.float64)
    return LossInputs(
        logprobs_policy=torch.where(loss_mask, table, 0.0).requires_grad_(True),
        # Padding is poisoned: nothing of it may reach the loss.
        logprobs_old=torch.where(loss_mask, old, -900.0),
        loss_mask=loss_mask,
        rewards=torch.tensor(REWARDS, dtype=torch.float64),
        group_ids=torch.tensor(GROUPS),
    )


def members(group, reward=None):
    return [n for n in ROWS if GROUPS[n] == group and reward in (None, REWARDS[n])]


def mixed(group):
    return bool(members(group, 1.0)) and bool(members(group, 0.0))


def log_ratio(policy, old, n, t):
    return policy[n][t] - old[n][t]


def rate(n):
    return len(members(GROUPS[n], 1.0)) / len(members(GROUPS[n]))


def centred(n):
    return REWARDS[n] - rate(n)


def standardised(n):
    """(r − mean)/(std + 1e-6), std unbiased."""
    group = members(GROUPS[n])
    if len(group) == 1:
        return 0.0
    deviation = (sum((REWARDS[m] - rate(n)) ** 2 for m in group) / (len(group) - 1)) ** 0.5
    return centred(n) / (deviation + 1e-6)


def disco(policy, old, score, tau, beta=1e3, delta=1e-4, basic=False):
    def value(n):
        terms = [policy[n][t] if score == "logL" else log_ratio(policy, old, n, t).exp() for t in range(LENGTHS[n])]
        return sum(terms) / LENGTHS[n]

    total = torch.zeros((), dtype=torch.float64)
    for group in set(GROUPS):
        if mixed(group):
            right, wrong = members(group, 1.0), members(group, 0.0)
            total = total - sum(value(n) for n in right) / len(right)
            if basic:
                total = total + sum(value(n) for n in wrong) / len(wrong)
            else:
                total = total + tau * (sum((value(n) / tau).exp() for n in wrong) / len(wrong)).log()
    kl = sum(-log_ratio(policy, old, n, t) for n in ROWS for t in range(LENGTHS[n])) / TOKENS
    excess = kl - delta
    return total / len(set(GROUPS)) + (beta / 2 * excess**2 if excess > 0 else 0.0)


def pacs(policy, old, beta=1.0, balance=True):
    proxy = [beta * sum(log_ratio(policy, old, n, t) for t in range(LENGTHS[n])) for n in ROWS]
    total = torch.zeros((), dtype=torch.float64)
    for group in set(GROUPS):
        rows = members(group)
        for n in rows if len(rows) > 1 else []:
            score = proxy[n] - sum(proxy[m] for m in rows if m != n) / (len(rows) - 1)
            right = 1 / (1 + (-score).exp())
            entropy = -(right.log() if REWARDS[n] == 1 else (1 - right).log())
            weight = len(rows) / (2 * len(members(group, REWARDS[n]))) if balance and mixed(group) else 1.0
            total = total + weight * entropy / len(rows)
    return total / len(set(GROUPS))


def nft(policy, old, epsilon=1.0, weight=lambda r: 1 - r):
    total = torch.zeros((), dtype=torch.float64)
    for n in ROWS:
        for t in range(LENGTHS[n] if mixed(GROUPS[n]) else 0):
            ratio = log_ratio(policy, old, n, t).exp()
            if REWARDS[n] == 1:
                term = ratio.log()
            else:
                implicit = (1 - rate(n) * ratio) / (1 - rate(n))
                term = ((max(implicit.item(), epsilon) - implicit.item()) + implicit).log()
            total = total - weight(rate(n)) * term
    return total / TOKENS


def clipped_token_sum(policy, old, n, epsilon=0.2):
    total = torch.zeros((), dtype=torch.float64)
    for t in range(LENGTHS[n]):
        ratio = log_ratio(policy, old, n, t).exp()
        total = total + torch.minimum(ratio * centred(n), ratio.clamp(1 - epsilon, 1 + epsilon) * centred(n))
    return total


def dr_grpo(policy, old, divisor=3000.0, epsilon=0.2):
    return -sum(clipped_token_sum(policy, old, n, epsilon) for n in ROWS) / (len(REWARDS) * divisor)


def cispo(policy, old, cap=5.0):
    total = torch.zeros((), dtype=torch.float64)
    for n in ROWS:
        for t in range(LENGTHS[n]):
            weight = min(log_ratio(policy, old, n, t).exp().item(), cap)
            total = total - weight * standardised(n) * policy[n][t]
    return total / TOKENS


def sapo(policy, old, positive=1.0, negative=1.05):
    total = torch.zeros((), dtype=torch.float64)
    for n in ROWS:
        tau = positive if standardised(n) > 0 else negative
        for t in range(LENGTHS[n]):
            gate = 4 / tau / (1 + (-tau * (log_ratio(policy, old, n, t).exp() - 1)).exp())
            total = total - gate * standardised(n) / LENGTHS[n]
    return total / len(REWARDS)


def gmpo(policy, old, low=0.4, high=0.4):
    total = torch.zeros((), dtype=torch.float64)
    for n in ROWS:
        product = torch.ones((), dtype=torch.float64)
        for t in range(LENGTHS[n]):
            ratio = log_ratio(policy, old, n, t).exp()
            bounds = (0, torch.e**high) if standardised(n) > 0 else (torch.e**-low, torch.inf)
            product = product * ratio.clamp(*bounds)
        total = total - standardised(n) * product ** (1 / LENGTHS[n])
    return total / len(REWARDS)


CASES = [
    ({"type": "disco"}, lambda p, o: disco(p, o, "logL", 10.0)),
    ({"type": "disco", "tau": 0.5, "beta": 3.0, "delta": 0.01}, lambda p, o: disco(p, o, "logL", 0.5, 3.0, 0.01)),
    ({"type": "disco", "score": "Lratio"}, lambda p, o: disco(p, o, "Lratio", 1.0)),
    ({"type": "disco", "score": "Lratio", "beta": 0}, lambda p, o: disco(p, o, "Lratio", 1.0, 0.0)),
    ({"type": "disco", "negatives": "mean"}, lambda p, o: disco(p, o, "logL", 10.0, basic=True)),
    ({"type": "disco", "score": "Lratio", "negatives": "mean"}, lambda p, o: disco(p, o, "Lratio", 1.0, basic=True)),
    ({"type": "dr_grpo"}, dr_grpo),
    ({"type": "dr_grpo", "length_divisor": 5, "epsilon": 0.1}, lambda p, o: dr_grpo(p, o, 5.0, 0.1)),
    ({"type": "cispo"}, cispo),
    ({"type": "cispo", "max_ratio": 1.2}, lambda p, o: cispo(p, o, 1.2)),
    ({"type": "sapo"}, sapo),
    ({"type": "sapo", "tau_positive": 0.5, "tau_negative": 3.0}, lambda p, o: sapo(p, o, 0.5, 3.0)),
    ({"type": "gmpo"}, gmpo),
    ({"type": "gmpo", "epsilon_low": 0.1, "epsilon_high": 0.2}, lambda p, o: gmpo(p, o, 0.1, 0.2)),
    ({"type": "pacs"}, pacs),
    ({"type": "pacs", "balance": False, "beta": 0.3}, lambda p, o: pacs(p, o, 0.3, False)),
    ({"type": "nft"}, nft),
    ({"type": "nft", "epsilon": 0.2}, lambda p, o: nft(p, o, 0.2)),
    ({"type": "nft", "question_weight": "grpo"}, lambda p, o: nft(p, o, weight=lambda r: ((1 - r) / r) ** 0.5)),
    ({"type": "nft", "question_weight": "equal"}, lambda p, o: nft(p, o, weight=lambda r: 1.0)),
]


def test_every_objective_is_covered():
    assert {config["type"] for config, _ in [*PAPER_CASES, *CASES]} == set(list_objectives())


@pytest.mark.parametrize(("config", "formula"), CASES, ids=[str(config) for config, _ in CASES])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradient(config, formula, seed):
    policy, old = tables(seed)
    inputs = make_inputs(policy, old)
    loss = build_objective(config).evaluate(inputs).loss
    expected = formula(policy, old)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-14)
    loss.backward()
    flat = torch.autograd.grad(expected, [value for row in policy for value in row], allow_unused=True)
    gradient = torch.tensor([0.0 if one is None else one.item() for one in flat], dtype=torch.float64)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(inputs.logprobs_policy.grad, gradient.view(len(REWARDS), -1), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_cases_reach_both_sides_of_every_bound(seed):
    """Else the cases above would not see the lines beyond them; the trust region is left with seed 0, kept with the others."""
    policy, old = tables(seed)
    ratios = [log_ratio(policy, old, n, t).exp().item() for n in ROWS for t in range(LENGTHS[n])]
    assert min(ratios) < 0.8 and max(ratios) > 1.5
    kl = -sum(log_ratio(policy, old, n, t).item() for n in ROWS for t in range(LENGTHS[n])) / TOKENS
    assert (kl > 0.02) == (seed == 0)
    wrong = [n for n in ROWS if REWARDS[n] == 0 and mixed(GROUPS[n])]
    implicit = [
        (1 - rate(n) * log_ratio(policy, old, n, t).exp().item()) / (1 - rate(n)) for n in wrong for t in range(LENGTHS[n])
    ]
    assert min(implicit) < 1 < max(implicit) and (min(implicit) < 0.2) == (seed == 1)


def test_the_weights_of_the_table_in_docs():
    """docs/objectives.md: one group, responses of one token (s̄ = s_t), the constants in front of the sums left out."""
    reward = torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64)
    old = torch.tensor([-1.0, -2, -1.5, -0.5, -2.5], dtype=torch.float64)
    s = torch.tensor([0.6, -0.3, 0.5, -0.6, 0.1], dtype=torch.float64)
    right, ratio, size, rate = reward == 1, s.exp(), 5, 0.4
    score, a = old + s, (reward - rate) / ((reward - rate).square().sum() / 4).sqrt()
    inside = torch.where(right, ratio <= 1.2, ratio >= 0.8)
    geometric = torch.where(right, ratio * (s < 0.4), ratio * (s > -0.4))
    softmax = torch.where(right, -torch.inf, score / 10).softmax(0)
    gate = torch.sigmoid(torch.where(right, 1.0, 1.05) * (ratio - 1))
    proxy = s - (s.sum() - s) / (size - 1)
    d = torch.where(right, 5 / 4, 5 / 6) * (torch.sigmoid(proxy) - reward)
    implicit = ((1 - rate * ratio) / (1 - rate)).clamp(min=1)
    table = {
        "disco": ({"beta": 0}, 1, torch.where(right, -1 / 2, softmax)),
        "dr_grpo": ({}, size * 3000, -(reward - rate) * ratio * inside),
        "cispo": ({"max_ratio": 1.5}, size, -a * ratio.clamp(max=1.5)),
        "sapo": ({}, size, -a * ratio * 4 * gate * (1 - gate)),
        "gmpo": ({}, size, -a * geometric),
        "pacs": ({}, 1, (d - d.mean()) / (size - 1)),
        "nft": ({}, size, torch.where(right, -(1 - rate), rate * ratio / implicit)),
    }
    for name, (options, front, expected) in table.items():
        policy = (old + s)[:, None].requires_grad_(True)
        mask = torch.ones(size, 1, dtype=torch.bool)
        inputs = LossInputs(policy, old[:, None], mask, reward, torch.zeros(size, dtype=torch.long))
        (weights,) = torch.autograd.grad(build_objective({"type": name, **options}).evaluate(inputs).loss, policy)
        # The standard deviation of the objectives has 1e-6 added.
        assert weights[:, 0].mul(front).tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-9), name
