"""Optimizers: what bfloat16 loses without master weights, states that go through a file, 8-bit moments."""

import importlib.util
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from realrl.config import OptimSection
from realrl.training.checkpoint import _moments, load_optimizer
from realrl.training.optim import MasterWeights, build_optimizer, state_bytes

NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'realrl[qlora]'"
)
KINDS = [
    {"type": "adamw"},
    {"type": "adamw", "master_weights": True},
    pytest.param({"type": "adamw_8bit"}, marks=NEEDS_BITSANDBYTES),
    pytest.param({"type": "adamw_8bit", "master_weights": True}, marks=NEEDS_BITSANDBYTES),
]
DTYPES = [torch.float32, torch.bfloat16]


class Weights(torch.nn.Module):
    """Weights of the size of a language model's, one of them frozen, one too small for 8 bits."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.large = torch.nn.Parameter((0.02 * torch.randn(96, 128, generator=rng)).to(dtype))
        self.frozen = torch.nn.Parameter(torch.ones(5, dtype=dtype), requires_grad=False)
        self.small = torch.nn.Parameter((0.02 * torch.randn(40, generator=rng)).to(dtype))

    def take_gradient(self, step: int) -> None:
        rng = torch.Generator().manual_seed(100 + step)
        for parameter in (self.large, self.small):
            parameter.grad = torch.randn(parameter.shape, generator=rng).to(parameter.dtype)


def optimizer_of(model, **optim):
    return build_optimizer(OptimSection(**{"lr": 1e-3, "weight_decay": 0.1, **optim}), model)


def run(model, optimizer, steps):
    for step in steps:
        model.take_gradient(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def adamw_in_float64(weights, gradients, *, lr, weight_decay, betas=(0.9, 0.999), eps=1e-8):
    """Loshchilov & Hutter, Algorithm 2."""
    theta = weights.double()
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        first = betas[0] * first + (1 - betas[0]) * g
        second = betas[1] * second + (1 - betas[1]) * g * g
        step = (first / (1 - betas[0] ** t)) / ((second / (1 - betas[1] ** t)).sqrt() + eps)
        theta = theta - lr * weight_decay * theta - lr * step
    return theta


def test_a_hundred_tiny_updates_accumulate_in_the_master_weights_and_are_lost_without():
    """The paper's learning rate 2e-6 on bfloat16 weights, with a gradient that keeps its direction."""
    moved = {}
    for master in (False, True):
        model = Weights(torch.bfloat16)
        start = model.large.detach().clone()
        gradient = torch.randn(start.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        optimizer = optimizer_of(model, lr=2e-6, weight_decay=0.01, master_weights=master)
        for _ in range(100):
            model.large.grad = gradient.clone()
            optimizer.step()
        moved[master] = float((model.large != start).float().mean())
        if master:
            exact = adamw_in_float64(start, [gradient] * 100, lr=2e-6, weight_decay=0.01)
            found = optimizer.state_dict()["state"][0]["master"]
            assert (exact - start.double()).abs().median() > 1.9e-4
            assert (found.double() - exact).norm() / (exact - start.double()).norm() < 1e-3
            assert torch.equal(model.large, found.bfloat16())
    # Without, a weight moves only where 2e-6 is half a step of its bfloat16, so below about 1e-3.
    assert moved[False] < 0.06 and moved[True] > 0.75


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optim", KINDS, ids=str)
def test_a_run_through_a_file_goes_on_bit_for_bit(tmp_path, optim, dtype):
    whole, before = Weights(dtype), Weights(dtype)
    optimizer = optimizer_of(whole, **optim)
    run(whole, optimizer, range(6))
    first = optimizer_of(before, **optim)
    run(before, first, range(3))
    flat = {
        f"{index}/{key}": value.reshape(1) if value.dim() == 0 else value
        for index, entries in first.state_dict()["state"].items()
        for key, value in entries.items()
    }
    save_file(flat, tmp_path / "optimizer.safetensors")
    after = Weights(dtype)
    after.load_state_dict(before.state_dict())
    second = optimizer_of(after, **optim)
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(tmp_path / "optimizer.safetensors").items():
        index, key = name.split("/")
        entries.setdefault(int(index), {})[key] = value.reshape(()) if key == "step" else value
    second.load_state_dict({"state": entries, "param_groups": second.state_dict()["param_groups"]})
    run(after, second, range(3, 6))
    assert not torch.equal(whole.large, before.large)
    assert torch.equal(whole.large, after.large) and torch.equal(whole.small, after.small)
    states = [one.state_dict()["state"] for one in (optimizer, second)]
    assert [list(state) for state in states] == [[0, 1], [0, 1]]
    for index in (0, 1):
        assert states[0][index].keys() == states[1][index].keys()
        assert all(torch.equal(states[0][index][key], states[1][index][key]) for key in states[0][index])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optim", KINDS, ids=str)
def test_state_bytes_are_those_of_the_state(optim, dtype):
    model = Weights(dtype)
    optimizer = optimizer_of(model, **optim)
    run(model, optimizer, range(1))
    held = sum(
        value.numel() * value.element_size()
        for entries in optimizer.state_dict()["state"].values()
        for key, value in entries.items()
        if key != "step"
    )
    assert state_bytes(OptimSection(**optim), model) == held


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize("master", [False, True])
def test_8_bit_moments_follow_adamw(master):
    """The direction of 20 steps is that of exact moments, to the precision of 8 bits."""
    dtype = torch.bfloat16 if master else torch.float32
    model = Weights(dtype)
    start = model.large.detach().clone()
    optimizer = optimizer_of(model, type="adamw_8bit", master_weights=master)
    gradients = []
    for step in range(20):
        model.take_gradient(step)
        gradients.append(model.large.grad.clone())
        optimizer.step()
    exact = adamw_in_float64(start, gradients, lr=1e-3, weight_decay=0.1) - start.double()
    weights = optimizer.state_dict()["state"][0]["master"] if master else model.large
    found = weights.detach().double() - start.double()
    assert (found - exact).norm() / exact.norm() < 0.05
    assert optimizer.state_dict()["state"][0]["state1"].dtype == torch.uint8


def test_parameters_in_training_in_the_order_of_the_model():
    model = Weights(torch.bfloat16)
    for master in (False, True):
        (group,) = optimizer_of(model, master_weights=master).param_groups
        assert [id(p) for p in group["params"]] == [id(model.large), id(model.small)]


def test_master_weights_follow_the_learning_rate_that_is_set_from_outside():
    model = Weights(torch.bfloat16)
    optimizer = optimizer_of(model, weight_decay=0.0, master_weights=True)
    start = model.small.detach().float().clone()
    optimizer.param_groups[0]["lr"] = 0.25
    run(model, optimizer, range(1))
    # Adam's first step is the learning rate in the direction of the gradient's sign.
    step = (optimizer.state_dict()["state"][1]["master"] - start).abs()
    assert torch.allclose(step, torch.full_like(step, 0.25), rtol=1e-3)


def test_a_resume_without_master_weights_leaves_none_behind_for_a_later_one_with_them(tmp_path):
    model = Weights(torch.bfloat16)
    optimizer = optimizer_of(model, master_weights=True)
    run(model, optimizer, range(1))
    for wanted in (True, False, True):
        save_file(dict(_moments(model, optimizer)), tmp_path / "optimizer.safetensors")
        weights = model.large.detach().clone()
        optimizer = optimizer_of(model, master_weights=wanted)
        load_optimizer(tmp_path, model, optimizer)
        assert torch.equal(model.large, weights)
        run(model, optimizer, range(1, 30))
        assert not torch.equal(model.large, weights)


def test_gradients_stay_and_float32_weights_are_their_own_masters():
    model = Weights(torch.bfloat16)
    model.small.data = model.small.data.float()
    optimizer = optimizer_of(model, master_weights=True)
    assert isinstance(optimizer, MasterWeights) and optimizer.masters[1] is model.small
    model.take_gradient(0)
    kept = model.small.grad.clone()
    before = model.small.detach().clone()
    optimizer.step()
    assert torch.equal(model.small.grad, kept) and not torch.equal(model.small, before)
    assert "master" not in optimizer.state_dict()["state"][1]
    assert type(optimizer_of(Weights(torch.float32), master_weights=True)) is torch.optim.AdamW
    assert math.isclose(optimizer.param_groups[0]["lr"], 1e-3)
