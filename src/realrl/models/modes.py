"""Passes without noise: what is trained is what samples.

By their own configurations some models drop activations or layers, or jitter their routers, in training mode: two passes of the
same weights then differ, so that log π_θ/π_old of a policy that has not moved is not 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers.modeling_layers import GradientCheckpointingLayer

_NOISE = re.compile(r"drop(?!less)|jitter")


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode within; afterwards each module is in the mode that it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def train_without_noise(model: torch.nn.Module) -> None:
    """Eval mode, but for the modules that repeat a pass in backward (gradient checkpointing), since they do so only in training
    mode; within such a pass they are in eval mode, too."""
    model.eval()
    repeating: list[Any] = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    # In newer architectures each layer repeats itself, in older ones the stack repeats its layers.
    layers: list[Any] = [module for module in repeating if isinstance(module, GradientCheckpointingLayer)]
    for module in layers or repeating:
        module.training = True
        if not isinstance(module._gradient_checkpointing_func, _Quiet):
            module._gradient_checkpointing_func = _Quiet(module._gradient_checkpointing_func)


def noise_of(model: torch.nn.Module) -> list[tuple[Any, str]]:
    """The values above 0 that make passes in training mode differ, as (owner, name): dropout of every kind, dropped layers and
    router jitter, in modules and in the configurations that they read."""
    owners = {id(owner): owner for module in model.modules() for owner in (module, getattr(module, "config", None)) if owner}
    return [
        (owner, name)
        for owner in owners.values()
        for name, value in vars(owner).items()
        if isinstance(value, float) and value > 0 and (_NOISE.search(name) or (name == "p" and isinstance(owner, _DropoutNd)))
    ]


def repeats_passes(model: torch.nn.Module) -> bool:
    """Whether gradient checkpointing is on and acts."""
    return any(module.training and getattr(module, "gradient_checkpointing", False) for module in model.modules())


class _Quiet:
    """A checkpoint function in whose passes, the first and the repeated, the module is in eval mode."""

    def __init__(self, checkpoint: Callable[..., Any]) -> None:
        self._checkpoint = checkpoint

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        # transformers gives partial(forward, module, ...), or the bound method of an older architecture's layer.
        module: torch.nn.Module = function.args[0] if hasattr(function, "args") else function.__self__

        def quiet(*inputs: Any, **named: Any) -> Any:
            before, module.training = module.training, False
            try:
                return function(*inputs, **named)
            finally:
                module.training = before

        return self._checkpoint(quiet, *args, **kwargs)
