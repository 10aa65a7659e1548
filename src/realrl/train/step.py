"""The gradient of one optimizer step, exact for any split of its rollouts into micro-batches.

direct     whole groups in each micro-batch: backward through the objective with the whole step's denominators
two-pass   scores s of all rollouts without gradient (0 right after sampling), weights w = dL/ds through the small function
           s -> L, then micro-batches of any rows minimise the sum of w * s(theta), which has the same gradient
additive   objectives that are a sum over rollouts once advantages are known: any rows, one pass
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from realrl.logprobs import masked_mean, response_logprobs
from realrl.objectives import AdditiveObjective, Objective, ScoreObjective, totals_of
from realrl.train.batching import largest_group_tokens, plan_micro_batches, select_rows
from realrl.types import Batch, LossInputs, LossTotals


@dataclass(frozen=True, slots=True)
class StepSettings:
    """How a mini-batch is cut: `route` is auto, direct or two_pass; `budget` counts padded tokens of a micro-batch."""

    temperature: float
    budget: int
    route: str = "auto"
    autocast: torch.dtype | None = None
    shuffle: torch.Generator | None = None


@dataclass(slots=True)
class StepReport:
    """What one mini-batch showed; rows that carry no gradient were not computed and are False in `computed_N`."""

    loss: float
    route: str
    logprobs_NT: Float[Tensor, "N T"]
    entropy_N: Float[Tensor, " N"]
    scores_N: Float[Tensor, " N"]
    weights_N: Float[Tensor, " N"]
    computed_N: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


class GradientStep:
    """Accumulates the gradient of an objective over one mini-batch of whole groups into `model.parameters()`.

    `forwards` and `backwards` count the micro-batches that went through the model since it was made.
    """

    def __init__(self, model: PreTrainedModel, objective: Objective, settings: StepSettings) -> None:
        self.model = model
        self.objective = objective
        self.settings = settings
        self.forwards = 0
        self.backwards = 0

    def backward(self, batch: Batch, old_NT: Float[Tensor, "N T"] | None, ref_NT: Float[Tensor, "N T"] | None) -> StepReport:
        """Add dL/dtheta of the whole mini-batch to the gradients.

        `old_NT` None means that the policy still is the one that sampled, so s = 0 for every token.
        """
        totals = totals_of(_inputs(batch, torch.zeros_like(batch.logprobs_sampler), None, None))
        active = self.objective.carries_gradient(batch.rewards, batch.group_ids, batch.levels)
        report = StepReport(
            loss=0.0,
            route=self._route(batch, active),
            logprobs_NT=torch.zeros_like(batch.logprobs_sampler),
            entropy_N=torch.zeros_like(batch.rewards),
            scores_N=torch.zeros_like(batch.rewards),
            weights_N=torch.zeros_like(batch.rewards),
            computed_N=active,
        )
        if not bool(active.any()):
            return report
        if isinstance(self.objective, ScoreObjective):
            report.weights_N = self._score_weights(self.objective, batch, old_NT, ref_NT, totals, report)
        elif isinstance(self.objective, AdditiveObjective):
            report.weights_N = self.objective.advantages(batch.rewards, batch.group_ids)
        for rows in self._parts(batch, active, report.route):
            inputs = self._forward(batch, rows, old_NT, ref_NT, report)
            self._part_loss(inputs, rows, report, totals).backward()
            self.backwards += 1
        self._summarise(batch, old_NT, ref_NT, totals, report)
        return report

    def token_logprobs(self, batch: Batch, rows_N: Tensor) -> Float[Tensor, "N T"]:
        """Log-probabilities of the rows marked in `rows_N` under the model as it is, without gradient; 0 elsewhere."""
        out = torch.zeros_like(batch.logprobs_sampler)
        if not bool(rows_N.any()):
            return out
        for rows in plan_micro_batches(batch, rows_N.nonzero().flatten().cpu(), self.settings.budget, whole_groups=False):
            part = select_rows(batch, rows)
            with torch.no_grad(), self._autocast():
                stats = response_logprobs(self.model, part, temperature=self.settings.temperature)
            self.forwards += 1
            out[rows, : part.response_ids.shape[1]] = stats.logprobs
        return out

    def _route(self, batch: Batch, active: Tensor) -> str:
        if not isinstance(self.objective, ScoreObjective):
            return "additive"
        if self.settings.route != "auto":
            return self.settings.route
        fits = largest_group_tokens(batch, active.nonzero().flatten().cpu()) <= self.settings.budget
        return "direct" if fits and self.settings.shuffle is None else "two_pass"

    def _parts(self, batch: Batch, active: Tensor, route: str) -> list[Tensor]:
        rows = active.nonzero().flatten().cpu()
        shuffle = self.settings.shuffle
        if shuffle is not None:
            rows = rows[torch.randperm(len(rows), generator=shuffle)]
        return plan_micro_batches(batch, rows, self.settings.budget, whole_groups=route == "direct", sort=shuffle is None)

    def _score_weights(self, objective, batch, old_NT, ref_NT, totals, report) -> Float[Tensor, " N"]:
        """dL/ds of every rollout; on the direct route backward needs none, and they are filled in afterwards."""
        if report.route == "direct":
            return report.weights_N
        scores_N = torch.zeros_like(batch.rewards)
        if old_NT is not None or not objective.zero_scores_when_fresh:
            policy_NT = self.token_logprobs(batch, report.computed_N)
            scores_N = objective.scores(_inputs(batch, policy_NT, policy_NT if old_NT is None else old_NT, ref_NT))
        return objective.weights(scores_N, batch.rewards, batch.group_ids, levels_N=batch.levels, totals=totals)

    def _forward(self, batch, rows, old_NT, ref_NT, report) -> LossInputs:
        part = select_rows(batch, rows)
        width = part.response_ids.shape[1]
        with self._autocast():
            stats = response_logprobs(self.model, part, temperature=self.settings.temperature)
        self.forwards += 1
        report.logprobs_NT[rows, :width] = stats.logprobs.detach()
        report.entropy_N[rows] = masked_mean(stats.entropy, part.loss_mask)
        old = stats.logprobs.detach() if old_NT is None else old_NT[rows, :width]
        return _inputs(part, stats.logprobs, old, None if ref_NT is None else ref_NT[rows, :width])

    def _part_loss(self, inputs: LossInputs, rows: Tensor, report: StepReport, totals: LossTotals) -> Tensor:
        objective = self.objective
        if isinstance(objective, AdditiveObjective):
            return objective.additive_loss(inputs, totals, report.weights_N[rows])
        if report.route == "direct" or not isinstance(objective, ScoreObjective):
            return objective(inputs, totals).loss
        return (report.weights_N[rows] * objective.scores(inputs)).sum() + objective.penalty(inputs, totals)

    def _summarise(self, batch, old_NT, ref_NT, totals, report: StepReport) -> None:
        """Loss, scores and weights of the whole mini-batch from the log-probabilities that the passes left behind."""
        policy_NT = report.logprobs_NT
        # Rows that were not computed get log-ratio 0 and carry no loss.
        old = policy_NT if old_NT is None else torch.where(report.computed_N[:, None], old_NT, policy_NT)
        inputs = _inputs(batch, policy_NT, old, ref_NT)
        with torch.no_grad():
            out = self.objective(inputs, totals)
        report.loss, report.metrics = float(out.loss), out.metrics
        report.scores_N = masked_mean(policy_NT - old, batch.loss_mask)
        if isinstance(self.objective, ScoreObjective):
            scores_N = self.objective.scores(inputs).detach()
            report.weights_N = self.objective.weights(
                scores_N, batch.rewards, batch.group_ids, levels_N=batch.levels, totals=totals
            )

    def _autocast(self):
        dtype = self.settings.autocast
        return torch.autocast(self.model.device.type, dtype or torch.bfloat16, enabled=dtype is not None)


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
