"""What an objective sees, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from realrl.objectives.groups import Groups
from realrl.objectives.segments import masked_token_mean


@dataclass(frozen=True)
class LossInputs:
    """What an objective sees of N rollouts in any order, of ragged groups.

    Log-probabilities are (N, T) floats in nats, `logprobs_policy` with gradient; padding may hold anything finite.
    `loss_mask` (N, T) bool is True on response tokens. `rewards` (N,) float, `group_ids` (N,) int64. `levels` (N,) int64
    orders the rollouts of a group more finely than rewards (default: 2 where the reward is 1, else 1).

    Raises ValueError for shapes that disagree, an empty response, or NaN in the rewards.
    """

    logprobs_policy: Float[Tensor, "N T"]
    logprobs_old: Float[Tensor, "N T"]
    loss_mask: Bool[Tensor, "N T"]
    rewards: Float[Tensor, " N"]
    group_ids: Int[Tensor, " N"]
    logprobs_ref: Float[Tensor, "N T"] | None = None
    levels: Int[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.logprobs_policy.shape)
        if len(shape) != 2 or shape[0] == 0:
            raise ValueError(f"logprobs_policy has shape {shape}; it must be (N, T) with N >= 1")
        for name in ("logprobs_old", "loss_mask", "logprobs_ref"):
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be that of logprobs_policy, {shape}")
        if self.loss_mask.dtype != torch.bool:
            raise ValueError(f"loss_mask has dtype {self.loss_mask.dtype}; it must be bool, True on response tokens")
        for name in ("rewards", "group_ids", "levels"):
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape[:1]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must hold one value a rollout, {shape[:1]}")
        check_responses(self.loss_mask)
        _ = self.groups

    @cached_property
    def groups(self) -> Groups:
        """The groups of these rollouts."""
        return Groups(self.rewards, self.group_ids, self.loss_mask.sum(dim=1), self.levels)


def log_ratio(inputs: LossInputs) -> Float[Tensor, "N T"]:
    """s_t = log π_θ − log π_old (Eq. 4), 0 on padding."""
    return torch.where(inputs.loss_mask, inputs.logprobs_policy - inputs.logprobs_old, 0)


def mean_log_ratio(inputs: LossInputs) -> Float[Tensor, " N"]:
    """s̄ = mean_t s_t (Eq. 5)."""
    return masked_token_mean(inputs.logprobs_policy - inputs.logprobs_old, inputs.loss_mask)


def check_responses(loss_mask: Bool[Tensor, "N T"]) -> None:
    """ValueError for a rollout without a response token."""
    empty = (~loss_mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"rollout {empty[0]} has no response token ({len(empty)} such of {len(loss_mask)}); "
            "a rollout has at least its end token: drop it or keep the end token in loss_mask"
        )


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A scalar loss with gradient to `logprobs_policy`, and plain floats under their metric names."""

    loss: Float[Tensor, ""]
    metrics: dict[str, float] = field(default_factory=dict)
