"""The policy loss in verl's workers, and the advantage estimator in its driver."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from realrl.errors import ConfigError

# The name in the configuration, and the estimator by which our trainers replace it.
NAME = "real"
PER_MINI_BATCH = "real_per_mini_batch"


def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, dict[str, float]]:
    """−Σ sg(a_t)·(log π_θ − log π_old), a_t = −∂L/∂log π_t: the gradient of the objective L, for any rows of a mini-batch.

    All tensors are (N, T). The driver puts a_t, with every denominator of the whole mini-batch, into `advantages`
    (`trainer.py`), so nothing is averaged here. verl averages gradients over its data-parallel ranks, hence × dp_size.
    """
    if rollout_is_weights is not None:
        raise ConfigError(
            "verl gave importance weights to policy_loss.loss_mode=real, which does not use them: "
            "set algorithm.rollout_correction.rollout_is=null"
        )
    change = torch.where(response_mask.bool(), log_prob - old_log_prob, 0)
    loss = -(advantages.detach() * change).sum() * config.global_batch_info["dp_size"]
    return loss, {}


def refuse_other_trainers(*_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """The estimator `real` in any other trainer than ours: its mini-batches would split groups."""
    raise ConfigError(
        "algorithm.adv_estimator=real was called by another trainer than ours, whose mini-batches split groups; set "
        "trainer.v1.trainer_mode=real_sync or real_colocate_async, and trainer.use_v1=True"
    )


def no_advantages_yet(token_level_rewards: Tensor, response_mask: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """Zeros (N, T). Advantages depend on the policy and are set for each mini-batch, right before its optimizer step."""
    zeros = torch.zeros_like(token_level_rewards)
    return zeros, zeros
