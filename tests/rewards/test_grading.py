"""Responses are graded while others are still sampled; importance weights and rollouts sampled ahead."""

import threading

import pytest
import torch
from patience import PATIENCE_S
from three_steps import ragged_batch

from realrl.config import RewardSection
from realrl.models import load_model
from realrl.objectives import build_objective
from realrl.rewards import Grading, build_grader
from realrl.rewards.grader import Grader
from realrl.training.gradient import GradientSettings, MiniBatchGradient
from realrl.types import Verdict


def test_verdicts_come_in_order_of_their_index_whatever_the_order_of_arrival():
    with build_grader(RewardSection(type="exact_integer")) as grader, Grading(grader, 50) as grading:
        for index in torch.randperm(50).tolist():
            grading.submit(index, rf"\boxed{{{index}}}", (str(index if index % 3 else index + 1),))
        assert [verdict.status == "correct" for verdict in grading.verdicts()] == [index % 3 > 0 for index in range(50)]


def test_grading_goes_on_before_the_last_response_is_there():
    graded = threading.Event()

    def quick(response, golds, policy):
        graded.set()
        return Verdict("correct", response)

    with Grading(Grader(quick), 2) as grading:
        grading.submit(1, "b", ("b",))
        assert graded.wait(timeout=PATIENCE_S)
        grading.submit(0, "a", ("a",))
        assert [verdict.extracted for verdict in grading.verdicts()] == ["a", "b"]


def test_a_grader_that_fails_and_a_missing_response_are_heard_of():
    def broken(response, golds, policy):
        raise KeyError("lost")

    with Grading(Grader(broken), 1) as grading:
        grading.submit(0, "a", ("a",))
        with pytest.raises(KeyError, match="lost"):
            grading.verdicts()
    with build_grader(RewardSection(type="exact_integer")) as grader, Grading(grader, 2) as grading:
        grading.submit(0, "1", ("1",))
        with pytest.raises(AssertionError, match="1 of 2 responses were not submitted"):
            grading.verdicts()


@pytest.mark.parametrize("route", ["direct", "two_pass"])
def test_importance_weights_scale_each_token_of_the_gradient(tiny_folder, route):
    """dL/dtheta = sum_k W_k mean_t min(pi_old / pi_sampler, C) dlogp_t / dtheta, written out with autograd token by token."""
    model = load_model(str(tiny_folder), dtype=torch.float32)
    batch = ragged_batch(model.config.vocab_size)
    objective = build_objective({"type": "real"})
    step = MiniBatchGradient(model, objective, GradientSettings(1.0, 10_000))
    everything = torch.ones(len(batch), dtype=torch.bool)
    policy_NT = step.token_logprobs(batch, everything)
    gap_NT = torch.randn(policy_NT.shape, generator=torch.Generator().manual_seed(0)) * batch.loss_mask
    batch.logprobs_sampler.copy_(policy_NT + gap_NT)
    capped = MiniBatchGradient(model, objective, GradientSettings(1.0, 10_000, route, importance_cap=1.5))
    model.zero_grad()
    capped.backward(batch, None, None)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])

    from realrl.models.logprobs import response_logprobs

    # At s = 0 a rollout's weight is -(1/tau) / (1 + n+) / P or +(1/tau) / (1 + n-) / P in mixed groups, else 0.
    weights = []
    for group, reward in zip(batch.group_ids.tolist(), batch.rewards.tolist(), strict=True):
        own = batch.rewards[batch.group_ids == group]
        alike = int((own == reward).sum())
        weights.append(0.0 if alike == len(own) else (-1 if reward else 1) * 2 / (1 + alike) / 6)
    factor_NT = torch.exp(-gap_NT).clamp(max=1.5) * torch.tensor(weights)[:, None] / batch.loss_mask.sum(dim=1, keepdim=True)
    model.zero_grad()
    (response_logprobs(model, batch, temperature=1.0, layout="padded").logprobs * factor_NT).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (found - expected).norm() / expected.norm() < 1e-5
