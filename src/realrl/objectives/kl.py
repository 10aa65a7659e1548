"""The KL penalty, one piece for every objective."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from realrl.objectives.scores import masked_token_mean
from realrl.types import LossInputs, LossTotals


class KLConfig(BaseModel):
    """`target` none, ref (frozen initial model) or old (the sampling weights); `estimator` after Schulman's note."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    target: Literal["none", "ref", "old"] = "none"
    coef: float = Field(default=0.0, ge=0)
    estimator: Literal["k1", "k2", "k3"] = "k3"

    @model_validator(mode="after")
    def _is_whole(self) -> KLConfig:
        if self.coef and self.target == "none":
            raise ValueError(f"coef = {self.coef} without a target penalises nothing; set target = 'ref' or 'old', or coef = 0")
        if self.target != "none" and "coef" not in self.model_fields_set:
            raise ValueError(f"target = {self.target!r} without a coef penalises nothing; set coef, such as 0.001")
        return self

    @property
    def active(self) -> bool:
        """Whether the penalty has any effect."""
        return self.target != "none" and self.coef > 0


def kl_estimate(policy: Float[Tensor, "N T"], target: Float[Tensor, "N T"], estimator: str) -> Float[Tensor, "N T"]:
    """Per-token estimate of KL(π_θ‖π_target) in nats: k1 = d, k2 = d²/2, k3 = e^−d + d − 1 with d = log π_θ − log π_target."""
    difference = policy - target
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    return torch.expm1(-difference) + difference


def kl_penalty(inputs: LossInputs, config: KLConfig, totals: LossTotals) -> Float[Tensor, ""]:
    """coef × KL, mean over each rollout's tokens, then over the rollouts of the whole mini-batch; 0 when off.

    Raises ValueError where the target is ref and `logprobs_ref` is missing.
    """
    if not config.active:
        return inputs.logprobs_policy.new_zeros(())
    target = inputs.logprobs_ref if config.target == "ref" else inputs.logprobs_old
    if target is None:
        raise ValueError("kl.target is 'ref' but logprobs_ref is None; pass the reference model's log-probabilities")
    # On padding an exp could overflow: the gradient must not pass through it.
    policy = torch.where(inputs.loss_mask, inputs.logprobs_policy, 0)
    mean_N = masked_token_mean(kl_estimate(policy, target, config.estimator), inputs.loss_mask)
    return config.coef * mean_N.sum() / totals.num_rollouts
