"""AdamW over the trained parameters, optionally with 8-bit moments or float32 master weights.

Every state is a tensor, so that a checkpoint in safetensors restores a run bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from realrl.config import Config, OptimSection
from realrl.models.adapters import need_bitsandbytes

MASTER = "master"
# Constants of bitsandbytes.
_BLOCK = 256
_SMALLEST_IN_8_BITS = 4096


def build_optimizer(optim: OptimSection, model: PreTrainedModel) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that require a gradient, in the order of `model.named_parameters()`.

    Raises ConfigError for `adamw_8bit` without bitsandbytes.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Fused: one pass over each parameter, without temporary tensors of its size.
    kind: Any = _adamw_8bit() if optim.type == "adamw_8bit" else functools.partial(torch.optim.AdamW, fused=True)

    def make(weights: Sequence[Tensor]) -> torch.optim.Optimizer:
        return kind(weights, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)

    narrow = any(parameter.dtype != torch.float32 for parameter in parameters)
    return MasterWeights(parameters, make) if optim.master_weights and narrow else make(parameters)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: Config, number: int) -> float:
    """Set and return the rate of round `number` (from 0): a warm-up, then `optim.schedule`."""
    rate = config.optim.lr * config.optim.factor(number, config.train.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def state_bytes(optim: OptimSection, model: PreTrainedModel) -> int:
    """Bytes of the optimizer's state: two moments of each trained parameter, and its master weights."""
    total = 0.0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        master = optim.master_weights and parameter.dtype != torch.float32
        width = 4 if master else parameter.element_size()
        if optim.type == "adamw_8bit":
            # A float32 scale for each block of codes; small parameters keep float32 moments.
            width = 1 + 4 / _BLOCK if parameter.numel() >= _SMALLEST_IN_8_BITS else 4
        total += parameter.numel() * (2 * width + 4 * master)
    return round(total)


class MasterWeights(torch.optim.Optimizer):
    """An optimizer that updates float32 copies of the weights, and rounds the weights from them.

    `make` builds the optimizer of the copies. Parameters in float32 need no copy. All operations are elementwise, so sharded
    parameters (DTensor) get sharded copies.
    """

    def __init__(self, weights: Sequence[Tensor], make: Callable[[Sequence[Tensor]], torch.optim.Optimizer]) -> None:
        self.weights = list(weights)
        self.masters = [w if w.dtype == torch.float32 else w.detach().to(torch.float32) for w in self.weights]
        self.inner = make(self.masters)
        super().__init__(self.weights, dict(self.inner.defaults))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update from the gradients of the weights."""
        if closure is not None:
            raise NotImplementedError("a closure is not supported; compute the gradients before step()")
        for own, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({key: value for key, value in own.items() if key != "params"})
        gradients = [weight.grad for weight in self.weights]
        for master in self.masters:
            master.grad = None
        # One parameter at a time, so that only one gradient in float32 is in memory.
        for weight, master, gradient in zip(self.weights, self.masters, gradients, strict=True):
            if gradient is None:
                continue
            master.grad = gradient.to(torch.float32)
            self.inner.step()
            master.grad = None
            if weight is not master:
                weight.copy_(master)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner optimizer, with each parameter's copy under the key `master`."""
        inner = self.inner.state_dict()
        state = {index: dict(entries) for index, entries in inner["state"].items()}
        for index, (weight, master) in enumerate(zip(self.weights, self.masters, strict=True)):
            if weight is not master:
                state.setdefault(index, {})[MASTER] = master
        return {"state": state, "param_groups": super().state_dict()["param_groups"]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the weights become their copies, rounded."""
        state = {index: dict(entries) for index, entries in state_dict["state"].items()}
        for index, (weight, master) in enumerate(zip(self.weights, self.masters, strict=True)):
            if weight is not master:
                # A state saved without master weights: the copies are the weights.
                master.copy_(state.get(index, {}).pop(MASTER, weight))
                weight.copy_(master)
        filled = {index: entries for index, entries in state.items() if entries}
        self.inner.load_state_dict({"state": filled, "param_groups": state_dict["param_groups"]})
        for own, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            own.update({key: value for key, value in saved.items() if key != "params"})


def _adamw_8bit() -> type[torch.optim.Optimizer]:
    bnb: Any = need_bitsandbytes("optim.type = 'adamw_8bit'")

    class AdamW8bit(bnb.optim.AdamW8bit):
        """AdamW8bit with a flat state: bitsandbytes shares its code tables between parameters and counts steps in an int."""

        def state_dict(self) -> dict[str, Any]:
            plain = torch.optim.Optimizer.state_dict(self)
            plain["state"] = {
                index: {
                    key: torch.tensor(float(value)) if key == "step" else value
                    for key, value in entries.items()
                    if not key.startswith("qmap")
                }
                for index, entries in plain["state"].items()
            }
            return plain

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            tables = {"qmap1": self.name2qmap["dynamic"], "qmap2": self.name2qmap["udynamic"]}
            state = {
                index: {key: int(value) if key == "step" else value for key, value in entries.items()}
                | (tables if "absmax1" in entries else {})
                for index, entries in state_dict["state"].items()
            }
            super().load_state_dict({**state_dict, "state": state}, move_to_device)

    return AdamW8bit
