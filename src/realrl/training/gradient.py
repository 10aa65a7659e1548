"""The gradient of one update, exact for any split of its rollouts into micro-batches.

`objectives.exact` has the routes to it; this file chooses the cheapest, plans the micro-batches and runs the passes through the
model. Several ranks share the groups of a mini-batch, and their gradients are summed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from realrl.config import Config
from realrl.models.logprobs import Layout, TokenStats, layout_of, longest_row
from realrl.objectives import Groups, LossInputs, Objective, ScoreObjective
from realrl.objectives.base import main_score
from realrl.objectives.exact import Weights, part_loss, weigh
from realrl.objectives.segments import masked_token_mean
from realrl.seeding import generator
from realrl.training.batching import plan_micro_batches, select_rows
from realrl.training.distributed import World, deal_groups, in_lockstep, token_stats_of
from realrl.types import Batch


@dataclass(frozen=True, slots=True)
class GradientSettings:
    """How the gradient of a mini-batch is computed.

    `route`: "auto", "direct" or "two_pass". `budget`: the most tokens of a micro-batch, with padding. `importance_cap` C > 0
    multiplies each token's gradient by min(π_old / π_sampler, C), which corrects for a sampler with other numerics (truncated
    importance sampling per token); 0 turns this off. `layout` None takes the best layout of the model.
    """

    temperature: float
    budget: int
    route: str = "auto"
    autocast: torch.dtype | None = None
    shuffle: torch.Generator | None = None
    importance_cap: float = 0.0
    layout: Layout | None = None


def gradient_settings(config: Config, number: int) -> GradientSettings:
    """The recipe's settings in round `number` (from 0), which has its own random order with `train.shuffle_rollouts`."""
    return GradientSettings(
        temperature=config.sampling.temperature,
        budget=config.train.micro_batch_tokens,
        route=config.train.gradient_route,
        autocast=torch.bfloat16 if config.model.autocast == "bfloat16" else None,
        shuffle=generator(config.run.seed, "shuffle", number) if config.train.shuffle_rollouts else None,
        importance_cap=config.sampling.importance_cap,
        layout=None if config.train.layout == "auto" else config.train.layout,
    )


@dataclass(slots=True)
class GradientReport:
    """What the gradient passes over one mini-batch measured, before its update.

    Rollouts that carry no gradient are not computed: they are False in `computed_N`, and their other values are 0.
    `log_ratio_NT` is log π_θ − log π_old.
    """

    loss: float
    route: str
    logprobs_NT: Float[Tensor, "N T"]
    log_ratio_NT: Float[Tensor, "N T"]
    entropy_N: Float[Tensor, " N"]
    top1_N: Float[Tensor, " N"]
    scores_N: Float[Tensor, " N"]
    weights_N: Float[Tensor, " N"]
    computed_N: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


class MiniBatchGradient:
    """Adds the gradient of an objective over a mini-batch of whole groups to the gradients of the model's parameters.

    On several ranks, each rank calls it with the same mini-batches and computes its own part;
    `distributed.sum_gradients` then adds the parts up.
    """

    def __init__(
        self, model: PreTrainedModel, objective: Objective, settings: GradientSettings, world: World | None = None
    ) -> None:
        self.model = model
        self.objective = objective
        self.settings = settings
        self.world = world or World()
        self._forwards = 0
        self._backwards = 0

    def take_passes(self) -> tuple[int, int]:
        """Forward and backward passes of micro-batches on this rank since the last call."""
        passes = self._forwards, self._backwards
        self._forwards = self._backwards = 0
        return passes

    def backward(
        self, batch: Batch, old_NT: Float[Tensor, "N T"] | None, ref_NT: Float[Tensor, "N T"] | None
    ) -> GradientReport:
        """Add dL/dθ of the mini-batch, or this rank's part of it, to the gradients.

        `old_NT` None means that the policy is still the one that sampled: then every log-ratio is 0.
        """
        groups = groups_of(batch)
        active = self.objective.carries_gradient(groups)
        report = GradientReport(
            loss=0.0,
            route=self._route(batch, active, fresh=old_NT is None) if bool(active.any()) else "none",
            logprobs_NT=torch.zeros_like(batch.logprobs_sampler),
            log_ratio_NT=torch.zeros_like(batch.logprobs_sampler),
            entropy_N=torch.zeros_like(batch.rewards),
            top1_N=torch.zeros_like(batch.rewards),
            scores_N=torch.zeros_like(batch.rewards),
            weights_N=torch.zeros_like(batch.rewards),
            computed_N=active,
        )
        if not bool(active.any()):
            return report
        weights = self._weights(batch, groups, old_NT, ref_NT, report)
        if weights.rollout is not None:
            report.weights_N = weights.rollout
        parts = self._parts(batch, active, report.route)
        idle = self._idle_passes(len(parts))
        for rows in parts:
            inputs = self._forward(batch, rows, old_NT, ref_NT, report)
            part_loss(self.objective, inputs, groups, weights, rows).backward()
            self._backwards += 1
        for _ in range(idle):
            (0 * self._stats(_shortest_row(batch)).logprobs.sum()).backward()
        self.world.sum_(report.logprobs_NT, report.entropy_N, report.top1_N)
        self._summarise(batch, old_NT, ref_NT, groups, report)
        return report

    def token_logprobs(self, batch: Batch, rows_N: Tensor) -> Float[Tensor, "N T"]:
        """Log-probabilities of the rows that are True in `rows_N` under the current model, without gradient; 0 elsewhere."""
        out = torch.zeros_like(batch.logprobs_sampler)
        if not bool(rows_N.any()):
            return out
        rows = self._own_rows(batch, rows_N)
        parts = plan_micro_batches(batch, rows, self.settings.budget, self._layout(batch), whole_groups=False).rows
        idle = self._idle_passes(len(parts))
        with torch.no_grad():
            for rows in parts:
                part = select_rows(batch, rows)
                out[rows, : part.response_ids.shape[1]] = self._stats(part).logprobs
            for _ in range(idle):
                self._stats(_shortest_row(batch))
        self.world.sum_(out)
        return out

    def _own_rows(self, batch: Batch, rows_N: Tensor) -> Tensor:
        """Indices of this rank's rows among those that are True in `rows_N`."""
        return deal_groups(batch, rows_N.nonzero().flatten().cpu(), self.world.size)[self.world.rank]

    def _stats(self, part: Batch) -> TokenStats:
        dtype = self.settings.autocast
        with torch.autocast(self.model.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            stats = token_stats_of(self.model, part, self.settings.temperature, self.settings.layout)
        self._forwards += 1
        return stats

    def _idle_passes(self, parts: int) -> int:
        """How many empty passes this rank adds: with FSDP2 every rank must make as many passes as the busiest one."""
        return self.world.largest(parts, self.model.device) - parts if in_lockstep(self.model) else 0

    def _route(self, batch: Batch, active: Tensor, fresh: bool) -> str:
        """The route that puts fewer tokens through the model. A backward pass costs as much as two forward passes."""
        if not isinstance(self.objective, ScoreObjective):
            return "additive"
        if self.settings.route != "auto":
            return self.settings.route
        if self.settings.shuffle is not None or not self.objective.sums_over_groups:
            return "two_pass"
        rows, budget, layout = active.nonzero().flatten().cpu(), self.settings.budget, self._layout(batch)
        direct, split = (plan_micro_batches(batch, rows, budget, layout, whole_groups=whole).tokens for whole in (True, False))
        known = fresh and self.objective.zero_scores_when_fresh
        return "direct" if max(direct) <= budget and 3 * sum(direct) <= (3 if known else 4) * sum(split) else "two_pass"

    def _parts(self, batch: Batch, active: Tensor, route: str) -> list[Tensor]:
        rows = self._own_rows(batch, active)
        shuffle = self.settings.shuffle
        if shuffle is not None:
            rows = rows[torch.randperm(len(rows), generator=shuffle)]
        return plan_micro_batches(
            batch, rows, self.settings.budget, self._layout(batch), whole_groups=route == "direct", sort=shuffle is None
        ).rows

    def _layout(self, batch: Batch) -> Layout:
        return layout_of(self.model, self.settings.layout, longest=longest_row(batch))

    def _weights(self, batch: Batch, groups: Groups, old_NT, ref_NT, report: GradientReport) -> Weights:
        """Each rollout's weight; where it depends on scores that are not known yet, a forward pass computes them first."""
        objective, direct = self.objective, report.route == "direct"
        scores_N = None
        known = old_NT is None and objective.zero_scores_when_fresh
        if isinstance(objective, ScoreObjective) and not (direct or known):
            policy_NT = self.token_logprobs(batch, report.computed_N)
            scores_N = objective.scores(_inputs(batch, policy_NT, policy_NT if old_NT is None else old_NT, ref_NT))
        return weigh(objective, groups, scores_N, direct=direct)

    def _forward(self, batch, rows, old_NT, ref_NT, report) -> LossInputs:
        part = select_rows(batch, rows)
        width = part.response_ids.shape[1]
        stats = self._stats(part)
        policy = stats.logprobs
        report.logprobs_NT[rows, :width] = policy.detach()
        report.entropy_N[rows] = masked_token_mean(stats.entropy, part.loss_mask)
        report.top1_N[rows] = masked_token_mean(stats.top1, part.loss_mask)
        old = policy.detach() if old_NT is None else old_NT[rows, :width]
        if self.settings.importance_cap:
            weight = (old - part.logprobs_sampler).exp().clamp(max=self.settings.importance_cap)
            # The value stays; only the gradient of each token is multiplied.
            policy = policy.detach() + weight * (policy - policy.detach())
        return _inputs(part, policy, old, None if ref_NT is None else ref_NT[rows, :width])

    def _summarise(self, batch, old_NT, ref_NT, groups: Groups, report: GradientReport) -> None:
        """Loss, scores and weights of the whole mini-batch, from the log-probabilities of all passes."""
        policy_NT = report.logprobs_NT
        # Rows that were not computed get log-ratio 0 and add nothing to the loss.
        old = policy_NT if old_NT is None else torch.where(report.computed_N[:, None], old_NT, policy_NT)
        inputs = _inputs(batch, policy_NT, old, ref_NT)
        with torch.no_grad():
            out = self.objective.evaluate(inputs, groups)
        report.loss, report.metrics = float(out.loss), out.metrics
        report.log_ratio_NT = policy_NT - old
        report.scores_N = masked_token_mean(report.log_ratio_NT, batch.loss_mask)
        if isinstance(self.objective, ScoreObjective):
            scores_N = self.objective.scores(inputs).detach()
            report.weights_N = main_score(self.objective.weights(scores_N, groups))


def groups_of(batch: Batch) -> Groups:
    """The groups of a mini-batch, as objectives see them."""
    return Groups(batch.rewards, batch.group_ids, batch.loss_mask.sum(dim=1), batch.levels)


def _shortest_row(batch: Batch) -> Batch:
    return select_rows(batch, batch.loss_mask.sum(dim=1).argmin()[None].cpu())


def _inputs(batch: Batch, policy: Tensor, old: Tensor | None, ref: Tensor | None) -> LossInputs:
    return LossInputs(
        logprobs_policy=policy,
        logprobs_old=policy.detach() if old is None else old,
        logprobs_ref=ref,
        loss_mask=batch.loss_mask,
        rewards=batch.rewards,
        group_ids=batch.group_ids,
        levels=batch.levels,
    )
