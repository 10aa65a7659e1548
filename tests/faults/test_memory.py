"""Out of memory in a micro-batch: the same gradient with half the budget, or a clear end."""

import re

import pytest
import three_steps as steps
import torch
from small_runs import config, records
from three_steps import three_steps

import realrl.training.setup as setup
from realrl.errors import ModelError, TrainingError
from realrl.models import load_model
from realrl.training import train


def no_memory():
    """What the allocator of main memory says."""
    torch.empty(2**55)


def no_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 1 GiB")


class Faulty:
    """Calls of the model's forward, counted from 1, of which some run out of memory: those in `calls`, or those of more than
    `capacity` tokens."""

    def __init__(self, fault, calls=(), capacity=None):
        self.fault, self.calls, self.capacity = fault, calls, capacity
        self.count = 0
        self.seen = []

    def __call__(self, module, args, kwargs):
        self.count += 1
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.seen.append(ids.numel())
        if self.count in self.calls or (self.capacity is not None and ids.numel() > self.capacity):
            self.fault()


@pytest.fixture
def faulty(monkeypatch):
    """Hang a fault into the models that `three_steps` loads from now on."""
    load = steps.load_model

    def install(fault):
        def loaded(*arguments, **keywords):
            model = load(*arguments, **keywords)
            model.base_model.register_forward_pre_hook(fault, with_kwargs=True)
            return model

        monkeypatch.setattr(steps, "load_model", loaded)
        return fault

    return install


@pytest.mark.parametrize(("route", "fault"), [("direct", no_gpu_memory), ("two_pass", no_memory)])
def test_the_weights_after_three_steps_are_those_without_the_fault(tiny_folder, faulty, fault, route):
    """Whichever pass the fault meets: the one over later mini-batches, or a micro-batch after others have added their part."""
    train = {"gradient_route": route, "micro_batch_tokens": 60}
    start = torch.cat([p.detach().flatten() for p in load_model(str(tiny_folder), dtype=torch.float32).parameters()])
    passes = faulty(Faulty(fault))
    expected, updates = three_steps(tiny_folder, {"type": "real"}, **train)
    assert max(update.backwards for update in updates) > 1
    for call in range(1, passes.count + 1):
        hook = faulty(Faulty(fault, (call,)))
        found, updates = three_steps(tiny_folder, {"type": "real"}, **train)
        assert hook.count > passes.count and updates[-1].budget < 60
        assert (found - expected).norm() / (expected - start).norm() < 1e-5, call


def test_a_sequence_that_does_not_fit_alone_is_a_clear_error(tiny_folder, faulty):
    faulty(Faulty(no_memory, capacity=0))
    with pytest.raises(
        TrainingError, match=r"with one sequence of \d+ tokens at a time \(.*can't allocate memory.*gradient_check"
    ):
        three_steps(tiny_folder, {"type": "real"})


def test_other_errors_are_not_taken_for_it(tiny_folder, faulty):
    def other():
        raise RuntimeError("shape mismatch")

    faulty(Faulty(other, calls=(1,)))
    with pytest.raises(ModelError, match="shape mismatch"):
        three_steps(tiny_folder, {"type": "real"})


def test_a_run_keeps_the_smaller_budget_and_says_so(tiny_folder, tmp_path, monkeypatch, capsys):
    """A device with room for 40 tokens, which sampling does not count against."""
    load, hook = setup.load_policy, Faulty(no_memory, capacity=40)

    def loaded(*arguments):
        model = load(*arguments)
        model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: hook(module, args, kwargs) if not kwargs.get("use_cache") else None, with_kwargs=True
        )
        return model

    monkeypatch.setattr(setup, "load_policy", loaded)
    train(config(tiny_folder, tmp_path / "run", data={"eval": []}))
    budgets = [record["compute/micro_batch_tokens"] for record in records(tmp_path / "run")]
    warnings = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    found = [
        re.match(r"step (\d+): WARNING: out of memory: micro-batches have at most (\d+) tokens", line) for line in warnings
    ]
    fitted = {int(match[1]): int(match[2]) for match in found if match}
    assert 1 <= len(warnings) == len(fitted) <= 3 and min(fitted) < 6 and list(fitted.values())[-1] <= 40
    assert budgets == [next((fitted[at] for at in reversed(fitted) if at <= step), 32768) for step in range(1, 7)]
    assert budgets == sorted(budgets, reverse=True)
    assert (tmp_path / "run" / "alarms.txt").read_text().splitlines() == warnings
