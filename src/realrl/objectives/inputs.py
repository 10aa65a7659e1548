"""The inputs and outputs of an objective."""

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
    """What an objective sees of N rollouts, in any order and in groups of any sizes.

    Log-probabilities are (N, T) floats in nats, `logprobs_policy` with gradient; padding may hold any finite value.
    `loss_mask` (N, T) bool is True on response tokens. `rewards` is (N,) float, `group_ids` (N,) int64. `levels` (N,) int64
    orders the rollouts of a group more finely than rewards (default: 2 if the reward is 1, else 1).

    Raises ValueError if shapes do not match, a response is empty, or a reward is not finite.
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
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must have the shape of logprobs_policy, {shape}")
        if self.loss_mask.dtype != torch.bool:
            raise ValueError(f"loss_mask has dtype {self.loss_mask.dtype}; it must be bool, True on response tokens")
        for name in ("rewards", "group_ids", "levels"):
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape[:1]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must hold one value per rollout, {shape[:1]}")
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
    """Raise ValueError if a rollout has no response token."""
    empty = (~loss_mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"rollout {empty[0]} has no response token (and so {len(empty)} of {len(loss_mask)}); "
            "keep at least the end token in loss_mask, or drop the rollout"
        )


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A scalar loss with a gradient to `logprobs_policy`, and metrics by name."""

    loss: Float[Tensor, ""]
    metrics: dict[str, float] = field(default_factory=dict)
