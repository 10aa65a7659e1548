"""The gradient, and the weights after three optimizer steps, are the same for every micro-batch layout and route."""

import pytest
import torch
from three_steps import ragged_batch, three_steps

from realrl.models import load_model
from realrl.models.logprobs import response_logprobs
from realrl.objectives import LossInputs, build_objective
from realrl.training.gradient import GradientSettings, MiniBatchGradient

OBJECTIVES = [
    {"type": "real"},
    {"type": "real", "degenerate_groups": "use"},
    {"type": "real", "anchor": False},
    {"type": "real", "kl": {"target": "ref", "coef": 0.1}},
    {"type": "real", "kl": {"target": "old", "coef": 0.1}},
    {"type": "bce"},
    {"type": "grpo", "kl": {"target": "ref", "coef": 0.1}},
    {"type": "dapo"},
    {"type": "gspo"},
    {"type": "trpa"},
    {"type": "disco"},
    {"type": "disco", "score": "Lratio", "beta": 0},
    {"type": "dr_grpo", "length_divisor": 10},
    {"type": "cispo", "max_ratio": 1.01},
    {"type": "sapo"},
    {"type": "gmpo"},
    {"type": "pacs"},
    {"type": "nft"},
]
LAYOUTS = [
    {"gradient_route": "two_pass"},
    {"gradient_route": "two_pass", "micro_batch_tokens": 25},
    {"gradient_route": "direct", "micro_batch_tokens": 60},
    {"micro_batch_tokens": 40, "shuffle_rollouts": True},
    {"layout": "packed", "micro_batch_tokens": 60},
    {"layout": "padded", "gradient_route": "two_pass", "micro_batch_tokens": 25},
    {"gradient_route": "auto", "micro_batch_tokens": 1},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_weights_after_three_steps_do_not_depend_on_the_layout(tiny_folder, objective):
    start = torch.cat([p.detach().flatten() for p in load_model(str(tiny_folder), dtype=torch.float32).parameters()])
    # DisCO's trust region couples all groups, which the direct route cannot do: see the test below.
    direct = build_objective(objective).sums_over_groups
    whole, updates = three_steps(tiny_folder, objective, gradient_route="direct" if direct else "auto")
    assert (whole - start).norm() > 1e-2
    # The later mini-batches really are off the sampling policy.
    assert updates[2].report.scores_N.abs().max() > 1e-3
    for layout in LAYOUTS if direct else [one for one in LAYOUTS if one.get("gradient_route") != "direct"]:
        weights, _ = three_steps(tiny_folder, objective, **layout)
        assert (weights - whole).norm() / (whole - start).norm() < 1e-5, layout


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("budget", [25, 120])
def test_one_step_off_the_sampling_policy_has_the_gradient_of_the_whole_batch(tiny_folder, objective, budget):
    """The reference is one backward through the objective of all rows at once, without the routes."""
    model = load_model(str(tiny_folder), dtype=torch.float32)
    batch, built = ragged_batch(model.config.vocab_size), build_objective(objective)

    def gradient():
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    policy = response_logprobs(model, batch, temperature=1.0).logprobs
    rng = torch.Generator().manual_seed(7)
    old, ref = (policy.detach() + 0.3 * torch.rand(policy.shape, generator=rng) - shift for shift in (0.0, 0.1))
    inputs = LossInputs(policy, old, batch.loss_mask, batch.rewards, batch.group_ids, ref, batch.levels)
    built.evaluate(inputs).loss.backward()
    expected = gradient()
    model.zero_grad()
    report = MiniBatchGradient(model, built, GradientSettings(temperature=1.0, budget=budget)).backward(batch, old, ref)
    assert report.loss == pytest.approx(built.evaluate(inputs).loss.item(), rel=1e-5, abs=1e-6)
    assert report.weights_N.shape == batch.rewards.shape
    assert (gradient() - expected).norm() / expected.norm() < 1e-5


def test_cutting_groups_without_the_weights_would_be_another_gradient(tiny_folder):
    """The control: the loss averaged over torn groups is far off, so the test above can fail."""
    from realrl.training.batching import select_rows

    model = load_model(str(tiny_folder), dtype=torch.float32)
    batch = ragged_batch(model.config.vocab_size)
    objective = build_objective({"type": "real"})

    def gradient(parts):
        model.zero_grad()
        whole = None
        for rows in parts:
            part = select_rows(batch, rows)
            policy = response_logprobs(model, part, temperature=1.0).logprobs
            inputs = LossInputs(policy, policy.detach(), part.loss_mask, part.rewards, part.group_ids)
            whole = whole or inputs.groups
            objective.evaluate(inputs, whole).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    rows = torch.arange(len(batch))
    exact, torn = gradient([rows]), gradient(rows.split(4))
    assert (exact - torn).norm() / exact.norm() > 0.1


def test_work_is_not_done_twice(tiny_folder):
    """One mini-batch after sampling: a forward and a backward for each micro-batch, none for old log-probabilities."""
    _, updates = three_steps(tiny_folder, {"type": "real"}, gradient_route="two_pass")
    first = updates[0]
    assert (first.forwards - 1, first.backwards) == (1, 1)  # the pass over the later mini-batches counts to the first
    assert (updates[1].forwards, updates[1].backwards) == (2, 1)  # scores without gradient, then the gradient
    _, direct = three_steps(tiny_folder, {"type": "real"}, gradient_route="direct")
    assert (direct[1].forwards, direct[1].backwards) == (1, 1)
