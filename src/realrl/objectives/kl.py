"""The KL penalty, the same for every objective."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from realrl.objectives.configs import KLConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs
from realrl.objectives.segments import masked_token_mean


def kl_estimate(policy: Float[Tensor, "N T"], target: Float[Tensor, "N T"], estimator: str) -> Float[Tensor, "N T"]:
    """Per-token estimate of KL(π_θ‖π_target) in nats: k1 = d, k2 = d²/2, k3 = e^−d + d − 1 with d = log π_θ − log π_target."""
    difference = policy - target
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    return torch.expm1(-difference) + difference


def kl_penalty(inputs: LossInputs, config: KLConfig, whole: Groups) -> Float[Tensor, ""]:
    """coef × KL, averaged over each rollout's tokens, then over the rollouts of the mini-batch `whole`; 0 if it is off.

    Raises ValueError if the target is ref and `logprobs_ref` is missing.
    """
    if not config.active:
        return inputs.logprobs_policy.new_zeros(())
    target = inputs.logprobs_ref if config.target == "ref" else inputs.logprobs_old
    if target is None:
        raise ValueError("kl.target is 'ref' but logprobs_ref is None; pass the reference model's log-probabilities")
    # exp could overflow on padding, so no gradient may pass through it.
    policy = torch.where(inputs.loss_mask, inputs.logprobs_policy, 0)
    mean_N = masked_token_mean(kl_estimate(policy, target, config.estimator), inputs.loss_mask)
    return config.coef * mean_N.sum() / len(whole)
