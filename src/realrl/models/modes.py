"""Forward passes without noise, so that training sees the same distribution that sampled.

In training mode, some models drop activations or layers, or add jitter to their routers. Two passes with the same weights then
differ, and log π_θ/π_old is not 0 for an unchanged policy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers.modeling_layers import GradientCheckpointingLayer

from realrl.models.tree_attention import current_switch, switched

_NOISE = re.compile(r"drop(?!less)|jitter")


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Context manager for eval mode; at the end each module returns to its previous mode."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def train_without_noise(model: torch.nn.Module) -> None:
    """Put the model into eval mode, without turning off gradient checkpointing, which works only in training mode.

    Modules with gradient checkpointing stay in training mode, except during their passes."""
    model.eval()
    repeating: list[Any] = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    # In newer architectures each layer repeats its own pass; in older ones the stack repeats the passes of its layers.
    layers: list[Any] = [module for module in repeating if isinstance(module, GradientCheckpointingLayer)]
    for module in layers or repeating:
        module.training = True
        if not isinstance(module._gradient_checkpointing_func, _Quiet):
            module._gradient_checkpointing_func = _Quiet(module._gradient_checkpointing_func)


def noise_of(model: torch.nn.Module) -> list[tuple[Any, str]]:
    """The settings above 0 that make passes in training mode differ, as (owner, name): every kind of dropout, dropped layers
    and router jitter, in modules and in their configurations."""
    owners = {id(owner): owner for module in model.modules() for owner in (module, getattr(module, "config", None)) if owner}
    return [
        (owner, name)
        for owner in owners.values()
        for name, value in vars(owner).items()
        if isinstance(value, float) and value > 0 and (_NOISE.search(name) or (name == "p" and isinstance(owner, _DropoutNd)))
    ]


def repeats_other_passes(model: torch.nn.Module) -> bool:
    """Whether gradient checkpointing may repeat a pass with another attention than that of the first pass."""
    return any(
        module.training
        and getattr(module, "gradient_checkpointing", False)
        and not isinstance(getattr(module, "_gradient_checkpointing_func", None), _Quiet)
        for module in model.modules()
    )


class _Quiet:
    """A checkpoint function that puts the module into eval mode for the first pass and for the repeated one, and gives the
    repeated one the attention of the first."""

    def __init__(self, checkpoint: Callable[..., Any]) -> None:
        self._checkpoint = checkpoint

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        # transformers passes partial(forward, module, ...) or, in older architectures, a bound method of the layer.
        module: torch.nn.Module = function.args[0] if hasattr(function, "args") else function.__self__

        attention = current_switch()

        def quiet(*inputs: Any, **named: Any) -> Any:
            before, module.training = module.training, False
            try:
                with switched(attention):
                    return function(*inputs, **named)
            finally:
                module.training = before

        return self._checkpoint(quiet, *args, **kwargs)
