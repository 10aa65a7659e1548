"""The groups of a mini-batch, which give labels, advantages and all denominators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from realrl.objectives.segments import group_index, in_float64, segment_sum


@dataclass(frozen=True)
class Groups:
    """N rollouts in any order, in groups of any sizes.

    `rewards` (N,) float; `ids` (N,) int, equal for rollouts of one prompt; `tokens` (N,) int, the number of response tokens.
    `levels` (N,) int orders the rollouts of a group more finely than rewards, for objectives that compare pairs.

    Raises ValueError if shapes do not match, ids are not integers, or a reward is not finite.
    """

    rewards: Float[Tensor, " N"]
    ids: Int[Tensor, " N"]
    tokens: Int[Tensor, " N"]
    levels: Int[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.rewards.shape)
        for name, values in (
            ("rewards", self.rewards),
            ("group_ids", self.ids),
            ("tokens", self.tokens),
            ("levels", self.levels),
        ):
            if values is not None and (values.ndim != 1 or tuple(values.shape) != shape):
                raise ValueError(f"{name} has shape {tuple(values.shape)}; it must hold one value per rollout, {shape}")
        if self.ids.is_floating_point():
            raise ValueError(f"group_ids has dtype {self.ids.dtype}; it must be int64")
        if not bool(torch.isfinite(self.rewards).all()):
            raise ValueError("rewards contain NaN or infinity; every rollout needs a finite reward")

    def __len__(self) -> int:
        return len(self.rewards)

    @cached_property
    def _indexed(self) -> tuple[Tensor, int]:
        return group_index(self.ids)

    @property
    def index(self) -> Int[Tensor, " N"]:
        """The group number of each rollout, from 0 to P − 1."""
        return self._indexed[0]

    @property
    def count(self) -> int:
        """P, the number of groups."""
        return self._indexed[1]

    @cached_property
    def num_tokens(self) -> int:
        """The number of response tokens of all rollouts."""
        return int(self.tokens.sum())

    @cached_property
    def sizes(self) -> Float[Tensor, " P"]:
        """The number of rollouts in each group."""
        return self.sum(torch.ones_like(self.rewards))

    def sum(self, values_N: Float[Tensor, " N"]) -> Float[Tensor, " P"]:
        """The sum over the rollouts of each group."""
        return segment_sum(values_N, self.index, self.count)

    def __getitem__(self, rows: Tensor) -> Groups:
        """A selection of rollouts, by index or mask."""
        return Groups(self.rewards[rows], self.ids[rows], self.tokens[rows], None if self.levels is None else self.levels[rows])

    def in_float64(self) -> Groups:
        """The same groups with rewards in float64; from an Apple GPU, which lacks it, everything moves to the CPU."""
        rewards_N = in_float64(self.rewards)
        levels = None if self.levels is None else self.levels.to(rewards_N.device)
        return replace(
            self, rewards=rewards_N, ids=self.ids.to(rewards_N.device), tokens=self.tokens.to(rewards_N.device), levels=levels
        )
