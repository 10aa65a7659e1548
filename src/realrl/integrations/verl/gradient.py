"""The objective's gradient in the log-probability of each token, and mini-batches of whole groups. Nothing of verl here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from realrl.objectives import Objective
from realrl.types import LossInputs, LossOutput


def plan_mini_batches(uids: Sequence[str], groups: int, shuffle: np.random.Generator | None = None) -> list[list[int]]:
    """Rows of each mini-batch: `groups` whole groups in the order of their first rows, or shuffled; the last may be smaller.

    `uids` names the group of each row; rows of a group may lie anywhere, and groups may differ in size.
    """
    rows: dict[str, list[int]] = {}
    for row, uid in enumerate(uids):
        rows.setdefault(uid, []).append(row)
    order = list(rows)
    if shuffle is not None:
        shuffle.shuffle(order)
    return [[row for uid in order[first : first + groups] for row in rows[uid]] for first in range(0, len(order), groups)]


def token_gains(objective: Objective, inputs: LossInputs) -> tuple[Float[Tensor, "N T"], LossOutput]:
    """−∂L/∂log π_θ of each response token (0 elsewhere) of a whole mini-batch, and L with its metrics.

    The loss depends on the parameters through these log-probabilities alone, so that −Σ sg(gain)·log π_θ, over any split of
    the rows, has its gradient: any objective, any KL penalty. In float64, returned in the dtype of the inputs.
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
        out = objective(exact)
        (gradient_NT,) = torch.autograd.grad(out.loss, policy_NT)
    out = replace(out, loss=out.loss.detach())
    return -gradient_NT.to(inputs.logprobs_policy.dtype), out
