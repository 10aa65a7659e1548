"""What every objective offers, and the table from its name to its class."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from realrl.objectives.kl import KLConfig, kl_penalty
from realrl.objectives.scores import (
    group_centred,
    group_index,
    in_float64,
    labels,
    mean_log_ratio,
    mixed_groups,
    segment_sum,
    totals_of,
)
from realrl.types import LossInputs, LossOutput, LossTotals


class BaseObjectiveConfig(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    type: Any
    kl: KLConfig = KLConfig()


class Objective(ABC):
    """A pure function from `LossInputs` to a loss to minimise, with denominators of the whole mini-batch.

    `needs_ref` and `needs_old` say which log-probabilities it reads, `needs_labels` that rewards have to be 0 or 1.
    `sums_over_groups` False: a term couples all groups of the mini-batch, so that only two passes are exact for a split.
    """

    needs_old: bool = True
    needs_labels: bool = False
    sums_over_groups: bool = True

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def needs_ref(self) -> bool:
        """Whether the frozen initial model's log-probabilities are read."""
        return self.config.kl.active and self.config.kl.target == "ref"

    @abstractmethod
    def __call__(self, inputs: LossInputs, totals: LossTotals | None = None) -> LossOutput:
        """Loss and metrics; `totals` default to the inputs' own, a part of a mini-batch passes the whole one's."""

    @abstractmethod
    def teaching_groups(self, rewards_N: Tensor, group_ids_N: Tensor, levels_N: Tensor | None) -> Tensor:
        """Rows whose group can have a gradient, the KL penalty left aside."""

    def carries_gradient(
        self, rewards_N: Float[Tensor, " N"], group_ids_N: Int[Tensor, " N"], levels_N: Int[Tensor, " N"] | None = None
    ) -> Bool[Tensor, " N"]:
        """Rows that can get a gradient; the others need not go through the model at all."""
        if self.config.kl.active:
            return torch.ones_like(rewards_N, dtype=torch.bool)
        return self.teaching_groups(rewards_N, group_ids_N, levels_N)

    def penalty(self, inputs: LossInputs, totals: LossTotals) -> Float[Tensor, ""]:
        """The KL piece, a sum over rows: any split of them adds up."""
        return kl_penalty(inputs, self.config.kl, totals)


class AdditiveObjective(Objective):
    """A sum over rollouts once each knows its advantage, so rows can be split freely."""

    def advantages(self, rewards_N: Float[Tensor, " N"], group_ids_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """A = (r − mean)/(std + 1e-6) over the group (Eq. 3), std unbiased; 0 for a group of one. Any finite rewards."""
        index_N, count = group_index(group_ids_N)
        size = segment_sum(torch.ones_like(rewards_N), index_N, count)
        centred_N = group_centred(rewards_N, group_ids_N)
        variance = segment_sum(centred_N.square(), index_N, count) / (size - 1).clamp(min=1)
        return centred_N / (variance.sqrt()[index_N] + 1e-6)

    @abstractmethod
    def surrogate(
        self, inputs: LossInputs, totals: LossTotals, advantages_N: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss without the KL piece, and metrics."""

    def additive_loss(self, inputs: LossInputs, totals: LossTotals, advantages_N: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """The loss of some rows whose advantages were computed over their whole groups."""
        return self.surrogate(inputs, totals, advantages_N)[0] + self.penalty(inputs, totals)

    def __call__(self, inputs: LossInputs, totals: LossTotals | None = None) -> LossOutput:
        totals = totals or totals_of(inputs)
        advantages_N = self.advantages(inputs.rewards, inputs.group_ids)
        surrogate, metrics = self.surrogate(inputs, totals, advantages_N)
        return finish(inputs, surrogate, self.penalty(inputs, totals), self.config.kl, metrics)

    def teaching_groups(self, rewards_N: Tensor, group_ids_N: Tensor, levels_N: Tensor | None) -> Tensor:
        index_N, count = group_index(group_ids_N)
        low = rewards_N.new_full((count,), torch.inf).scatter_reduce(0, index_N, rewards_N, "amin")
        high = rewards_N.new_full((count,), -torch.inf).scatter_reduce(0, index_N, rewards_N, "amax")
        return (high > low)[index_N]


class ScoreObjective(Objective):
    """An objective that sees a rollout only through one number, its score; rollouts of a group are coupled.

    One that reads S numbers of a rollout has `score_shape` (S,), scores and weights (N, S), the score proper first.
    """

    zero_scores_when_fresh: bool = True
    score_shape: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def scores(self, inputs: LossInputs) -> Float[Tensor, "N ..."]:
        """The score of each rollout, with gradient; a sum over tokens, so any rows can be computed together."""

    def zero_scores(self, rewards_N: Float[Tensor, " N"]) -> Float[Tensor, "N ..."]:
        """The scores of rollouts right after sampling where `zero_scores_when_fresh`."""
        return rewards_N.new_zeros(len(rewards_N), *self.score_shape)

    @abstractmethod
    def loss_from_scores(
        self,
        scores_N: Float[Tensor, "N ..."],
        rewards_N: Float[Tensor, " N"],
        group_ids_N: Int[Tensor, " N"],
        num_groups: int | None = None,
        *,
        levels_N: Int[Tensor, " N"] | None = None,
        totals: LossTotals | None = None,
    ) -> Float[Tensor, ""]:
        """The loss without the KL piece. `num_groups` (or `totals`) is the whole mini-batch's; default: the rows' own."""

    def weights(
        self,
        scores_N: Float[Tensor, "N ..."],
        rewards_N: Float[Tensor, " N"],
        group_ids_N: Int[Tensor, " N"],
        num_groups: int | None = None,
        *,
        levels_N: Int[Tensor, " N"] | None = None,
        totals: LossTotals | None = None,
    ) -> Float[Tensor, "N ..."]:
        """W = d loss_from_scores / d scores (Eq. 9, 10), by autograd in float64, in the scores' dtype, detached."""
        with torch.enable_grad():
            leaf_N = in_float64(scores_N.detach()).requires_grad_(True)
            group_ids_N = group_ids_N.to(leaf_N.device)
            levels_N = None if levels_N is None else levels_N.to(leaf_N.device)
            loss = self.loss_from_scores(
                leaf_N, in_float64(rewards_N), group_ids_N, num_groups, levels_N=levels_N, totals=totals
            )
            if not loss.requires_grad:
                return torch.zeros_like(scores_N).detach()
            return torch.autograd.grad(loss, leaf_N)[0].to(scores_N.device, scores_N.dtype)

    def __call__(self, inputs: LossInputs, totals: LossTotals | None = None) -> LossOutput:
        totals = totals or totals_of(inputs)
        scores_N = self.scores(inputs)
        loss = self.loss_from_scores(scores_N, inputs.rewards, inputs.group_ids, levels_N=inputs.levels, totals=totals)
        right_N = inputs.rewards == 1
        detached_N = score_proper(scores_N.detach())
        metrics = {
            "score/positive_mean": float(detached_N[right_N].mean()) if right_N.any() else 0.0,
            "score/negative_mean": float(detached_N[~right_N].mean()) if not right_N.all() else 0.0,
        }
        return finish(inputs, loss, self.penalty(inputs, totals), self.config.kl, metrics)


def score_proper(values_N: Float[Tensor, "N ..."]) -> Float[Tensor, " N"]:
    """The score of each rollout, or its weight, without the further numbers that an objective reads."""
    return values_N if values_N.ndim == 1 else values_N[:, 0]


class LabelObjective(ScoreObjective):
    """A score objective whose score is s̄ and whose labels are the rewards; a degenerate group may be skipped."""

    needs_labels = True

    def scores(self, inputs: LossInputs) -> Float[Tensor, " N"]:
        """s̄ = mean_t(log π_θ − log π_old) (Eq. 5)."""
        return mean_log_ratio(inputs)

    @property
    def skips_degenerate(self) -> bool:
        """Whether groups that are all right or all wrong have no loss."""
        return self.config.degenerate_groups == "skip"

    def counted(self, rewards_N: Tensor, group_ids_N: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """(right_N, counted_N, index_N, P): labels, rows that enter the loss, and their group's index."""
        right_N = labels(rewards_N)
        index_N, count = group_index(group_ids_N)
        counted_N = mixed_groups(right_N, index_N, count)[index_N]
        return right_N, counted_N if self.skips_degenerate else torch.ones_like(counted_N), index_N, count

    def teaching_groups(self, rewards_N: Tensor, group_ids_N: Tensor, levels_N: Tensor | None) -> Tensor:
        return self.counted(rewards_N, group_ids_N)[1]


def finish(inputs: LossInputs, loss: Tensor, penalty: Tensor, kl: KLConfig, metrics: dict[str, float]) -> LossOutput:
    """Add the KL piece and the metrics that every objective reports."""
    index_N, count = group_index(inputs.group_ids)
    right = segment_sum((inputs.rewards == 1).float(), index_N, count)
    size = segment_sum(torch.ones_like(inputs.rewards), index_N, count)
    solved_all, solved_none = int((right == size).sum()), int((right == 0).sum())
    total = loss + penalty
    if not total.requires_grad and inputs.logprobs_policy.requires_grad:
        # No row teaches anything: still a loss that backward accepts, with a gradient of exactly 0.
        total = total + 0 * torch.where(inputs.loss_mask, inputs.logprobs_policy, 0).sum()
    common = {
        "loss": float(total.detach()),
        "groups/degenerate": float(solved_all + solved_none),
        "groups/solved_all": float(solved_all),
        "groups/solved_none": float(solved_none),
    }
    if kl.active:
        common["kl"] = float(penalty.detach()) / kl.coef
    return LossOutput(total, {**metrics, **common})


_REGISTRY: dict[str, tuple[type[BaseObjectiveConfig], type[Objective]]] = {}
_Class = TypeVar("_Class", bound=type[Objective])


def register_objective(config: type[BaseObjectiveConfig]) -> Callable[[_Class], _Class]:
    """Class decorator: the objective that `config` describes, under the name of its `type` field."""

    def add(cls: _Class) -> _Class:
        _REGISTRY[config.model_fields["type"].default] = (config, cls)
        return cls

    return add


def list_objectives() -> list[str]:
    """Names that `build_objective` knows."""
    return sorted(_REGISTRY)


def build_objective(config: Mapping[str, Any] | BaseModel) -> Objective:
    """The objective of a config (`{"type": "real", "tau": 0.5}` or a config model).

    Raises ValueError for an unknown type or key (naming the nearest) or a value out of range.
    """
    fields = config.model_dump() if isinstance(config, BaseModel) else dict(config)
    name = fields.get("type")
    if name not in _REGISTRY:
        near = difflib.get_close_matches(str(name), list_objectives(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown objective type {name!r}{hint} Known: {', '.join(list_objectives())}")
    config_class, objective_class = _REGISTRY[name]
    unknown = [key for key in fields if key not in config_class.model_fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(config_class.model_fields), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"objective {name!r} has no key {unknown[0]!r}{hint} Known: {', '.join(config_class.model_fields)}")
    try:
        return objective_class(config_class(**fields))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise ValueError(f"objective {name!r}: {faults}") from error
