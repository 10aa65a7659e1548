"""The gradient of every objective on a device, for each layout, route and attention, against float64 on the CPU.

The reference is plain autograd, one unpadded row at a time, in float64. tests/golden holds the objectives' formulas.
"""

import functools
import importlib.util
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from device import DEVICE, marks
from made_up import make_model
from plain import gradient_of, row_logprobs

from realrl.objectives import LossInputs, build_objective, list_objectives
from realrl.training.gradient import GradientSettings, MiniBatchGradient
from realrl.types import Batch, Problem, Prompt

pytestmark = marks
TEMPERATURE, VOCABULARY = 0.8, 150
GROUPS = [0, 2, 1, 0, 0, 1, 2, 3, 0, 3, 2, 1]
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
LENGTHS = [4, 1, 7, 2, 9, 5, 3, 6, 1, 8, 2, 5]
# Tokens of each prompt, after those that all have in common, which the tree computes once.
PROMPTS, COMMON = [9, 3, 14, 5], 12
# Log-ratios of whole rows, off every bound at which an objective clips, so that rounding does not carry a row across.
RATIOS = [0.09, -0.05, 0.5, -0.35, -0.12, 0.08, -0.45, 0.06, 0.35, -0.08, -0.6, 0.11]
# The relative error of a gradient; what was measured is in docs/gpu_check.md.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.06}
# PACS takes the rows of a group from one another, so that rounding weighs more.
PACS_IN_BFLOAT16 = 0.15
ROUTES = {
    "direct": {"route": "direct", "budget": 50},
    "two_pass": {"route": "two_pass", "budget": 30},
    "shuffled": {"route": "two_pass", "budget": 30, "shuffle": 5},
}


def moved(batch, device):
    names = ("response_ids", "loss_mask", "group_ids", "rewards", "levels", "logprobs_sampler")
    return replace(batch, **{name: getattr(batch, name).to(device) for name in names})


@functools.cache
def made():
    """A model on the CPU in float32, a batch, and the log-probabilities (N, T) in float64 with their graph."""
    model = make_model(
        VOCABULARY, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    rng = torch.Generator().manual_seed(0)
    loss_mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    rewards = torch.tensor(REWARDS)

    def tokens(count):
        return tuple(torch.randint(0, VOCABULARY, (count,), generator=rng).tolist())

    common = tokens(COMMON)
    batch = Batch(
        prompts=[Prompt(Problem(str(own), "", ""), "", common + tokens(own)) for own in PROMPTS],
        response_ids=torch.randint(0, VOCABULARY, loss_mask.shape, generator=rng),
        loss_mask=loss_mask,
        group_ids=torch.tensor(GROUPS),
        rewards=rewards,
        # All of TRPA's levels: 0 where there is no answer.
        levels=torch.where(rewards == 1, 2, torch.arange(len(GROUPS)) % 2),
        logprobs_sampler=torch.zeros(loss_mask.shape),
    )
    plain = deepcopy(model).double()
    plain.set_attn_implementation("eager")
    rows = [row_logprobs(plain, batch, row, TEMPERATURE) for row in range(len(batch))]
    policy = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return model, batch, plain, policy


@functools.cache
def wanted(objective):
    """The gradient in float64, and the log-probabilities of the policy that sampled and of the reference model."""
    _, batch, plain, policy = made()
    ratios = torch.tensor(RATIOS, dtype=torch.float64)[:, None]
    old, ref = (torch.where(batch.loss_mask, policy.detach() - shift, 0) for shift in (ratios, ratios.flip(0)))
    inputs = LossInputs(policy, old, batch.loss_mask, batch.rewards.double(), batch.group_ids, ref, batch.levels)
    plain.zero_grad()
    build_objective({"type": objective}).evaluate(inputs).loss.backward(retain_graph=True)
    return gradient_of(plain), old.float(), ref.float()


@functools.cache
def on_device(attention):
    model = deepcopy(made()[0]).to(DEVICE)
    model.set_attn_implementation(attention)
    return model.train()


def skip_what_cannot_be(attention, dtype):
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    if attention == "flash_attention_2" and dtype == "float32":
        pytest.skip("flash_attention_2 has no float32")
    if attention == "flex_attention" and DEVICE.type == "cpu":
        pytest.skip("flex_attention has no backward on a CPU")
    if dtype == "bfloat16" and not has_bfloat16():
        pytest.skip("the device has no bfloat16 with a backward pass")


@functools.cache
def has_bfloat16():
    """Some processors have the forward pass alone."""
    weight = torch.randn(64, 64, device=DEVICE, requires_grad=True)
    try:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            torch.nn.functional.linear(torch.randn(32, 64, device=DEVICE, requires_grad=True), weight).sum().backward()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("objective", list_objectives())
@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2", "flex_attention"])
def test_gradient(attention, dtype, layout, objective, record_property):
    """Off the policy that sampled, with groups of all kinds and a group without a right answer."""
    skip_what_cannot_be(attention, dtype)
    exact, old, ref = wanted(objective)
    model, batch = on_device(attention), moved(made()[1], DEVICE)
    built = build_objective({"type": objective})
    tolerance = PACS_IN_BFLOAT16 if (objective, dtype) == ("pacs", "bfloat16") else TOLERANCE[dtype]
    for name, route in ROUTES.items():
        if name == "direct" and not built.sums_over_groups:
            continue
        settings = GradientSettings(
            temperature=TEMPERATURE,
            layout=layout,
            autocast=torch.bfloat16 if dtype == "bfloat16" else None,
            **route | ({"shuffle": torch.Generator().manual_seed(route["shuffle"])} if "shuffle" in route else {}),
        )
        step = MiniBatchGradient(model, built, settings)
        model.zero_grad()
        step.backward(batch, old.to(DEVICE), ref.to(DEVICE))
        assert step.take_passes()[1] > 1
        error = float((gradient_of(model) - exact).norm() / exact.norm())
        record_property(f"{dtype}, {attention}, {layout}", error)
        assert error < tolerance, name
