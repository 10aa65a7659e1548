"""The exact gradient of a mini-batch for any split of its rollouts into micro-batches. There are three routes:

direct     micro-batches of whole groups: backward through the objective, with the denominators of the whole mini-batch
two-pass   compute the scores s of all rollouts without gradient (0 right after sampling), then the weights w = dL/ds from the
           small function s → L. For micro-batches of any rows, Σ w·s(θ) has the same gradient as L
additive   for objectives that are a sum over rollouts once the advantages are known: any rows, one pass
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from realrl.objectives.base import AdditiveObjective, Objective, ScoreObjective
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, LossOutput, check_responses


@dataclass(frozen=True)
class Weights:
    """The factors of the rollouts' parts of the loss, for one mini-batch and one state of the policy.

    `rollout` (N, ...) holds advantages, or the weights dL/ds of the scores; None on the direct route. `loss` is the part of the
    loss value that belongs to no single row: the loss of the scores.
    """

    rollout: Float[Tensor, "N ..."] | None
    loss: float = 0.0


def weigh(objective: Objective, groups: Groups, scores_N: Float[Tensor, "N ..."] | None, *, direct: bool = False) -> Weights:
    """The weights of a mini-batch's rollouts. `scores_N=None` means right after sampling, with `zero_scores_when_fresh`.

    With `direct`, the caller promises that each part holds whole groups; raises ValueError if the objective couples groups.
    """
    if isinstance(objective, AdditiveObjective):
        return Weights(objective.advantages(groups))
    if direct or not isinstance(objective, ScoreObjective):
        if not objective.sums_over_groups:
            raise ValueError(f"objective {objective.type!r} couples all groups of a mini-batch: no split into groups is exact")
        return Weights(None)
    if scores_N is None:
        scores_N = fresh_scores(objective, groups)
    loss = objective.loss_from_scores(scores_N, groups, groups)
    return Weights(objective.weights(scores_N, groups), float(loss))


def fresh_scores(objective: ScoreObjective, groups: Groups) -> Float[Tensor, "N ..."]:
    """The scores right after sampling: 0. Raises ValueError if the objective has other scores then."""
    if not objective.zero_scores_when_fresh:
        raise ValueError(f"the scores of objective {objective.type!r} are not 0 right after sampling; compute them")
    return groups.rewards.new_zeros(len(groups), *objective.score_shape)


def part_loss(objective: Objective, inputs: LossInputs, groups: Groups, weights: Weights, rows: Tensor) -> Float[Tensor, ""]:
    """The part of the loss for the rows `rows`.

    The gradients of the parts add up to the gradient of the mini-batch, and their values plus `weights.loss` to its value."""
    if isinstance(objective, AdditiveObjective):
        assert weights.rollout is not None
        return objective.additive_loss(inputs, groups, weights.rollout[rows])
    if weights.rollout is None or not isinstance(objective, ScoreObjective):
        return objective.evaluate(inputs, groups).loss
    surrogate = (weights.rollout[rows] * objective.scores(inputs)).sum()
    # Only the gradient of the surrogate counts, so its value becomes 0.
    return surrogate - surrogate.detach() + objective.penalty(inputs, groups)


def token_gradient(objective: Objective, inputs: LossInputs) -> tuple[Float[Tensor, "N T"], LossOutput]:
    """∂L/∂log π_θ of each response token (0 elsewhere) of a whole mini-batch, and L with its metrics, without gradient.

    The loss depends on the parameters only through these log-probabilities. So Σ sg(gradient)·log π_θ has the same gradient
    over any split of the rows, for any objective and KL penalty. Computed in float64, returned in the dtype of the inputs.
    """
    with torch.enable_grad():
        policy_NT = inputs.logprobs_policy.detach().double().requires_grad_(True)
        exact = replace(
            inputs,
            logprobs_policy=policy_NT,
            logprobs_old=inputs.logprobs_old.double(),
            logprobs_ref=None if inputs.logprobs_ref is None else inputs.logprobs_ref.double(),
            rewards=inputs.rewards.double(),
        )
        out = objective.evaluate(exact)
        (gradient_NT,) = torch.autograd.grad(out.loss, policy_NT)
    return gradient_NT.to(inputs.logprobs_policy.dtype), replace(out, loss=out.loss.detach())


class Plan:
    """A mini-batch and one state of the policy. The gradients of `loss` over any split of the rollouts add up to the gradient
    of the objective over the whole mini-batch, in any order and on any number of processes. So do the values.

        plan = realrl.Real(tau=0.5).plan(old, mask, rewards, groups)
        for rows in any_split:
            plan.loss(policy_logprobs(rows), rows).backward()

    Make a new plan after every optimizer step, with the log-probabilities of the current policy. `active` (N,) bool marks
    the rollouts that can have a gradient; you need not pass the others.
    """

    def __init__(self, objective: Objective, groups: Groups, weights: Weights, held: LossInputs, rows: Tensor) -> None:
        self.objective = objective
        self.groups = groups
        self.active: Bool[Tensor, " N"] = objective.carries_gradient(groups)
        self._weights = weights
        self._held = held
        self._place_N = torch.full((len(groups),), -1, device=rows.device)
        self._place_N[rows] = torch.arange(len(rows), device=rows.device)

    @property
    def weights(self) -> Float[Tensor, "N ..."] | None:
        """Advantages, or dL/ds of each rollout's score; None if the objective is neither additive nor a score objective."""
        return self._weights.rollout

    def loss(self, policy: Float[Tensor, "K t"], rows: Tensor | Sequence[int]) -> Float[Tensor, ""]:
        """The part of the loss for the rollouts `rows` (numbers or a mask), whose log-probabilities `policy` carry a gradient.

        `policy` may have fewer columns than the mini-batch if the missing columns are padding. Raises ValueError if shapes do
        not match, and for rows that this process does not hold.
        """
        rows = torch.as_tensor(rows, device=self._place_N.device)
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        place = self._place_N[rows]
        if bool((place < 0).any()):
            raise ValueError(f"row {int(rows[place < 0][0])} is not among the rows that this process gave to the plan")
        held, width = self._held, policy.shape[1]
        if policy.shape[0] != len(rows) or bool(held.loss_mask[place, width:].any()):
            raise ValueError(
                f"policy has shape {tuple(policy.shape)}; it needs {len(rows)} rows, one for each of `rows`, and a column for "
                "each of their response tokens"
            )
        ref = held.logprobs_ref
        inputs = LossInputs(
            policy,
            held.logprobs_old[place, :width],
            held.loss_mask[place, :width],
            self.groups.rewards[rows],
            self.groups.ids[rows],
            None if ref is None else ref[place, :width],
            None if self.groups.levels is None else self.groups.levels[rows],
        )
        # Each active row gets an equal share of the value that belongs to no single row.
        share = float(self.active[rows].sum()) / max(int(self.active.sum()), 1)
        return part_loss(self.objective, inputs, self.groups, self._weights, rows) + share * self._weights.loss


@torch.no_grad()
def plan_mini_batch(
    objective: Objective,
    old: Float[Tensor, "M T"],
    mask: Bool[Tensor, "M T"],
    rewards: Float[Tensor, " N"],
    ids: Int[Tensor, " N"],
    policy: Float[Tensor, "M T"] | None = None,
    ref: Float[Tensor, "M T"] | None = None,
    levels: Int[Tensor, " N"] | None = None,
    rows: Int[Tensor, " M"] | None = None,
    all_reduce: Callable[[Tensor], object] | None = None,
) -> Plan:
    """Like `Objective.plan`, but for tensors only."""
    check_responses(mask)
    rows = torch.arange(len(mask), device=old.device) if rows is None else rows
    if rows.shape != mask.shape[:1] or (all_reduce is None and len(rows) != len(rewards)):
        raise ValueError(
            f"old and mask have {len(mask)} rows for {len(rows)} row numbers of {len(rewards)} rollouts; a process that holds "
            "a part of the mini-batch must pass rows=…, one number for each of its rows, and all_reduce=…"
        )
    share = all_reduce or (lambda values: values)
    tokens_N = torch.zeros(len(rewards), dtype=torch.long, device=old.device)
    tokens_N[rows] = mask.sum(dim=1)
    share(tokens_N)
    groups = Groups(rewards, ids, tokens_N, levels)
    held_levels = None if levels is None else levels[rows]
    held = LossInputs(old if policy is None else policy, old, mask, rewards[rows], ids[rows], ref, held_levels)
    scores_N = None
    if isinstance(objective, ScoreObjective) and not (policy is None and objective.zero_scores_when_fresh):
        own = objective.scores(held)
        scores_N = own.new_zeros(len(groups), *objective.score_shape)
        scores_N[rows] = own
        share(scores_N)
    return Plan(objective, groups, weigh(objective, groups, scores_N), held, rows)
