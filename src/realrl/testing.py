"""A check for your own objective: its gradient is correct, and exact for any split of a mini-batch."""

from __future__ import annotations

import torch
from torch import Tensor

from realrl.objectives import LossInputs, Objective, ScoreObjective
from realrl.objectives.exact import fresh_scores

_GROUPS = [0] * 4 + [1] * 3 + [2] * 2 + [3] * 3 + [4]
_REWARDS = [1.0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1]
_TOKENS = 5


def check_exact(objective: Objective, *, slope: bool = True, seed: int = 0) -> None:
    """Raise an AssertionError that says what is wrong, unless `objective` gives an exact gradient.

    The check takes a second or two, in float64. On generated groups of different sizes, in random order, it checks that

    - the gradient of the loss is its derivative (`torch.autograd.gradcheck`); pass `slope=False` if the loss stops gradients,
    - padding and the order of the rollouts do not matter,
    - the parts of a plan add up to the gradient and the value of the whole mini-batch, right after sampling and later, for
      single rows, for split groups, and for two processes that share the mini-batch,
    - rollouts without a gradient by `carries_gradient` have none, and scores declared 0 after sampling are 0.
    """
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(_GROUPS), generator=rng)
    groups, rewards = torch.tensor(_GROUPS)[order], torch.tensor(_REWARDS, dtype=torch.float64)[order]
    lengths = torch.randint(1, _TOKENS + 1, (len(order),), generator=rng)
    mask = torch.arange(_TOKENS) < lengths[:, None]
    old, drift, ref = (torch.rand(mask.shape, generator=rng, dtype=torch.float64) for _ in range(3))
    old, ref = -2 * old, -2 * ref
    policy = (old + 0.4 * (drift - 0.5)).requires_grad_(True)

    def whole(policy: Tensor) -> Tensor:
        return objective(policy, old, mask, rewards, groups, ref=ref)

    if slope:
        assert torch.autograd.gradcheck(whole, policy), "the gradient is not the derivative of the loss"
    _check_rows(objective, policy, old, mask, rewards, groups, ref)
    for state, now in (("right after sampling", old.clone().requires_grad_(True)), ("after an update", policy)):
        given = None if now is not policy else policy.detach()
        _check_splits(objective, state, now, given, old, mask, rewards, groups, ref)


def _check_rows(objective: Objective, policy, old, mask, rewards, groups, ref) -> None:
    loss = objective(policy, old, mask, rewards, groups, ref=ref)
    (gradient,) = torch.autograd.grad(loss, policy)
    assert not gradient[~mask].any(), "padding has a gradient"
    back = torch.arange(len(rewards)).flip(0)
    moved = objective(policy[back], old[back], mask[back], rewards[back], groups[back], ref=ref[back])
    _close(moved, loss, "the loss depends on the order of the rollouts")
    inputs = LossInputs(policy, old, mask, rewards, groups, ref)
    idle = ~objective.carries_gradient(inputs.groups)
    assert not gradient[idle].any(), "carries_gradient is False for a rollout that has a gradient"
    if isinstance(objective, ScoreObjective) and objective.zero_scores_when_fresh:
        fresh = objective.scores(LossInputs(old, old, mask, rewards, groups, ref))
        _close(
            fresh,
            fresh_scores(objective, inputs.groups),
            "zero_scores_when_fresh is set, but the scores of fresh rollouts are not 0",
        )


def _check_splits(objective: Objective, state: str, now, given, old, mask, rewards, groups, ref) -> None:
    loss = objective(now, old, mask, rewards, groups, ref=ref)
    (expected,) = torch.autograd.grad(loss, now)
    plan = objective.plan(old, mask, rewards, groups, given, ref=ref)
    rows = torch.arange(len(rewards))
    for name, size in (("single rollouts", 1), ("split groups", 3), ("the whole mini-batch", len(rewards))):
        parts = [plan.loss(now[part], part) for part in rows.split(size)]
        (gradient,) = torch.autograd.grad(torch.stack(parts).sum(), now)
        _close(gradient, expected, f"{state}, split into {name}: the gradient differs from the whole mini-batch's")
        _close(torch.stack(parts).sum(), loss, f"{state}, split into {name}: the values do not add up to the loss")
    halves = rows[::2], rows[1::2]
    parts = []
    for mine, others in (halves, halves[::-1]):
        reduce = _Peer(objective, given, old, mask, rewards, groups, ref, others)
        shared = objective.plan(
            old[mine],
            mask[mine],
            rewards,
            groups,
            None if given is None else given[mine],
            ref=ref[mine],
            rows=mine,
            all_reduce=reduce,
        )
        parts.append(shared.loss(now[mine], mine))
    (gradient,) = torch.autograd.grad(torch.stack(parts).sum(), now)
    _close(gradient, expected, f"{state}, two processes: the gradient differs from the whole mini-batch's")


class _Peer:
    """Stands in for a sum over two processes: adds what the other process, which holds `rows`, would add at each call."""

    def __init__(self, objective: Objective, policy, old, mask, rewards, groups, ref, rows: Tensor) -> None:
        now = old if policy is None else policy
        inputs = LossInputs(now[rows], old[rows], mask[rows], rewards[rows], groups[rows], ref[rows])
        scores = objective.scores(inputs).detach() if isinstance(objective, ScoreObjective) else None
        self._adds = [mask[rows].sum(dim=1), scores]
        self._rows = rows

    def __call__(self, values: Tensor) -> None:
        values[self._rows] += self._adds.pop(0)


def _close(found: Tensor, expected: Tensor, what: str) -> None:
    off, size = float((found - expected).detach().abs().max()), float(expected.detach().abs().max())
    assert off <= 1e-9 * size + 1e-12, f"{what} (off by {off:.1e} at {size:.1e})"
