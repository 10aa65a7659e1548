"""The updates of one round: each is one optimizer step on a mini-batch of whole groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from realrl.sampling import whole
from realrl.seeding import generator
from realrl.training.batching import mini_batches, select_rows
from realrl.training.debug import BadUpdate, gradients_not_finite, not_finite
from realrl.training.distributed import sum_gradients
from realrl.training.gradient import GradientReport, GradientSettings, MiniBatchGradient, gradient_settings, groups_of
from realrl.training.progress import Progress
from realrl.training.retry import retry_with_half_the_budget
from realrl.training.setup import Run
from realrl.types import Batch


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer step: its rows of the batch, what the gradient pass reported, and the norm of the gradient.

    `on_policy`: whether the weights before it were still those that sampled. `forwards` and `backwards` count this rank's
    micro-batches since the update before it; `budget` is their limit in tokens. A skipped update is kept in `bad`.
    """

    rows: Tensor
    report: GradientReport
    grad_norm: float
    on_policy: bool
    forwards: int
    backwards: int
    budget: int
    bad: BadUpdate | None = None

    @property
    def finite(self) -> bool:
        """Whether loss and gradient were finite."""
        return self.bad is None

    @property
    def inert(self) -> bool:
        """Whether no rollout of the mini-batch carried a gradient, so that the optimizer made no step."""
        return not bool(self.report.computed_N.any())


def update_policy(run: Run, batch: Batch, progress: Progress, *, on_policy: bool = True) -> list[Update]:
    """The updates of one round, over mini-batches of whole groups in random order.

    The first mini-batch needs no old log-probabilities: until the first update the policy is the one that sampled. For the
    later ones they are computed before that update. Rollouts of earlier weights (not `on_policy`) have the sampler's own.
    An update that is not finite is skipped and counted in `progress`.
    """
    config = run.config
    settings = gradient_settings(config, progress.rounds)
    gradient = MiniBatchGradient(run.model, run.objective, settings, run.world)
    draws = generator(config.run.seed, "mini_batches", progress.rounds)
    minis = mini_batches(batch, config.train.mini_batch_prompts, draws)
    active = run.objective.carries_gradient(groups_of(batch))
    old_NT = batch.logprobs_sampler
    if on_policy:
        later = active.clone()
        later[minis[0]] = False
        old_NT = retry_with_half_the_budget(run, gradient, batch, partial(gradient.token_logprobs, batch, later))
    ref_NT = reference_logprobs(run, batch, active, settings)
    updates: list[Update] = []
    for rows in minis:
        update = _update(run, gradient, batch, rows, None if on_policy else old_NT, ref_NT)
        updates.append(update)
        if update.inert:
            continue
        if update.finite:
            on_policy = False
        progress.bad_in_a_row = 0 if update.finite else progress.bad_in_a_row + 1
        progress.skipped_updates += not update.finite
    run.optimizer.zero_grad(set_to_none=True)
    return updates


def _update(
    run: Run,
    gradient: MiniBatchGradient,
    batch: Batch,
    rows: Tensor,
    old_NT: Float[Tensor, "N T"] | None,
    ref_NT: Float[Tensor, "N T"] | None,
) -> Update:
    """One update on the given rows of the batch; `old_NT` None means that the policy is the one that sampled."""
    mini = select_rows(batch, rows)
    width = mini.response_ids.shape[1]
    old, ref = (None if values_NT is None else values_NT[rows, :width] for values_NT in (old_NT, ref_NT))
    run.optimizer.zero_grad(set_to_none=True)
    report = retry_with_half_the_budget(run, gradient, mini, partial(gradient.backward, mini, old, ref))
    forwards, backwards = gradient.take_passes()
    grad_norm, bad = 0.0, None
    if report.computed_N.any():
        sum_gradients(run.model, run.world)
        total = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters() if p.grad is not None])
        grad_norm = float(whole(total))
        if math.isfinite(grad_norm) and math.isfinite(report.loss):
            torch.nn.utils.clip_grads_with_norm_(run.model.parameters(), run.config.optim.max_grad_norm, total)
            run.optimizer.step()
        else:
            bad = BadUpdate(
                batch=mini,
                old_NT=old,
                ref_NT=ref,
                policy_NT=report.logprobs_NT,
                loss=report.loss,
                grad_norm=grad_norm,
                gradients=gradients_not_finite(run.model),
                weights=not_finite(run.model.named_parameters()),
            )
    return Update(
        rows=rows,
        report=report,
        grad_norm=grad_norm,
        on_policy=old_NT is None,
        forwards=forwards,
        backwards=backwards,
        budget=gradient.settings.budget,
        bad=bad,
    )


def reference_logprobs(run: Run, batch: Batch, rows_N: Tensor, settings: GradientSettings) -> Float[Tensor, "N T"] | None:
    """Token log-probabilities of the marked rows under the frozen initial model; None where the objective reads none."""
    if run.reference is None:
        return None
    with run.reference as model:
        step = MiniBatchGradient(model, run.objective, settings, run.world)
        return retry_with_half_the_budget(run, step, batch, partial(step.token_logprobs, batch, rows_N))
