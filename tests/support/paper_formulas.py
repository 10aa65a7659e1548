"""The paper's objectives as naive float64 loops over plain Python numbers, written from the formulas alone."""

import math
import statistics

import torch

from realrl.objectives import LossInputs

REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
# Ragged, in any order: group 7 holds 4 mixed rollouts, 3 holds 2 right ones, 5 holds 2 mixed, 9 one wrong.
GROUPS = [7, 7, 5, 3, 7, 7, 3, 5, 9]
LEVELS = [2, 1, 0, 2, 2, 0, 2, 2, 1]
LENGTHS = [3, 1, 4, 2, 5, 2, 1, 3, 2]


def tables(seed=0, scale=0.6):
    rng = torch.Generator().manual_seed(seed)
    return [
        (-torch.rand(len(REWARDS), max(LENGTHS), generator=rng, dtype=torch.float64) * 2 * scale).tolist() for _ in range(3)
    ]


def make_inputs(policy, old, ref) -> LossInputs:
    loss_mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]

    def pad(table, value):
        return torch.where(loss_mask, torch.tensor(table, dtype=torch.float64), value)

    return LossInputs(
        logprobs_policy=pad(policy, 0.0).requires_grad_(True),
        # Padding of the given tables is poisoned: nothing of it may reach the loss.
        logprobs_old=pad(old, -900.0),
        logprobs_ref=pad(ref, 900.0),
        loss_mask=loss_mask,
        rewards=torch.tensor(REWARDS, dtype=torch.float64),
        group_ids=torch.tensor(GROUPS),
        levels=torch.tensor(LEVELS),
    )


def mean_ratio(policy, other):
    return [sum(policy[n][t] - other[n][t] for t in range(length)) / length for n, length in enumerate(LENGTHS)]


def members(group):
    return [n for n, g in enumerate(GROUPS) if g == group]


def mixed(group):
    return len({REWARDS[n] for n in members(group)}) == 2


def real(policy, old, tau=0.5, anchor=True, degenerate="skip"):
    s = mean_ratio(policy, old)
    total = 0.0
    for group in set(GROUPS):
        positive = sum(math.exp(-s[n] / tau) for n in members(group) if REWARDS[n] == 1)
        negative = sum(math.exp(s[n] / tau) for n in members(group) if REWARDS[n] == 0)
        if not anchor:
            total += math.log(1 + positive * negative)
        elif mixed(group) or degenerate == "use":
            total += math.log(1 + positive) + math.log(1 + negative)
    return total / len(set(GROUPS))


def bce(policy, old, tau=0.5, reduction="sum", degenerate="skip"):
    s = mean_ratio(policy, old)
    terms = [
        math.log(1 + math.exp((-1 if REWARDS[n] == 1 else 1) * s[n] / tau))
        for n in range(len(REWARDS))
        if mixed(GROUPS[n]) or degenerate == "use"
    ]
    return sum(terms) / (len(set(GROUPS)) if reduction == "sum" else len(terms))


def advantage(n):
    rewards = [REWARDS[m] for m in members(GROUPS[n])]
    if len(rewards) == 1:
        return 0.0
    return (REWARDS[n] - statistics.mean(rewards)) / (statistics.stdev(rewards) + 1e-6)


def clip(value, low, high):
    return max(low, min(high, value))


def token_gain(policy, old, n, t, low, high, bidirectional=False):
    ratio, a = math.exp(policy[n][t] - old[n][t]), advantage(n)
    if bidirectional:
        return ratio * a if 1 - low <= ratio <= 1 + high else 0.0
    return min(ratio * a, clip(ratio, 1 - low, 1 + high) * a)


def grpo(policy, old, bidirectional=False):
    return -sum(
        sum(token_gain(policy, old, n, t, 0.2, 0.2, bidirectional) for t in range(length)) / length
        for n, length in enumerate(LENGTHS)
    ) / len(REWARDS)


def dapo(policy, old):
    return -sum(token_gain(policy, old, n, t, 0.2, 0.28) for n, length in enumerate(LENGTHS) for t in range(length)) / sum(
        LENGTHS
    )


def gspo(policy, old):
    total = 0.0
    for n, s in enumerate(mean_ratio(policy, old)):
        u = math.exp(s)
        total += min(u * advantage(n), clip(u, 1 - 3e-4, 1 + 4e-4) * advantage(n))
    return -total / len(REWARDS)


def trpa(policy, ref, beta=0.1, anisotropy=2.5):
    delta = mean_ratio(policy, ref)
    terms = []
    for w in range(len(REWARDS)):
        for other in range(len(REWARDS)):
            if GROUPS[w] == GROUPS[other] and LEVELS[w] > LEVELS[other]:
                a = anisotropy if LEVELS[w] == 2 else 1.0
                terms.append(math.log(1 + math.exp(-a * beta * (delta[w] - delta[other]))))
    return sum(terms) / len(terms)


def kl(policy, target, estimator):
    def one(d):
        return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]

    means = [sum(one(policy[n][t] - target[n][t]) for t in range(k)) / k for n, k in enumerate(LENGTHS)]
    return sum(means) / len(means)


NO_KL = {"target": "none", "coef": 0.0}
CASES = [
    ({"type": "real"}, lambda p, o, r: real(p, o)),
    ({"type": "real", "tau": 0.1}, lambda p, o, r: real(p, o, tau=0.1)),
    ({"type": "real", "degenerate_groups": "use"}, lambda p, o, r: real(p, o, degenerate="use")),
    ({"type": "real", "anchor": False}, lambda p, o, r: real(p, o, anchor=False)),
    ({"type": "bce"}, lambda p, o, r: bce(p, o)),
    ({"type": "bce", "reduction": "mean"}, lambda p, o, r: bce(p, o, reduction="mean")),
    ({"type": "bce", "degenerate_groups": "use"}, lambda p, o, r: bce(p, o, degenerate="use")),
    (
        {"type": "bce", "reduction": "mean", "degenerate_groups": "use"},
        lambda p, o, r: bce(p, o, reduction="mean", degenerate="use"),
    ),
    ({"type": "grpo"}, lambda p, o, r: grpo(p, o) + 0.001 * kl(p, r, "k3")),
    ({"type": "grpo", "kl": NO_KL}, lambda p, o, r: grpo(p, o)),
    ({"type": "grpo", "kl": NO_KL, "clip": "bidirectional"}, lambda p, o, r: grpo(p, o, bidirectional=True)),
    ({"type": "dapo"}, lambda p, o, r: dapo(p, o)),
    ({"type": "gspo"}, lambda p, o, r: gspo(p, o)),
    ({"type": "trpa"}, lambda p, o, r: trpa(p, r) + 0.001 * kl(p, o, "k3")),
    *[
        (
            {"type": "real", "kl": {"target": target, "coef": 0.3, "estimator": estimator}},
            lambda p, o, r, target=target, estimator=estimator: (
                real(p, o) + 0.3 * kl(p, r if target == "ref" else o, estimator)
            ),
        )
        for target in ("ref", "old")
        for estimator in ("k1", "k2", "k3")
    ],
]
