"""The weights of a model in training as in a plain checkpoint: adapters merged, shards gathered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from realrl.errors import ConfigError


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and full tensor of every parameter, named as in the model without adapters; tied parameters once.

    A layer with active LoRA adapters gives W + sum of scaling * B A in the dtype of W; a quantised W is dequantised first.
    Tensors may be the parameters themselves: copy before changing. Under FSDP2 every rank must run the whole iteration,
    because each sharded tensor is gathered when it is reached.

    Raises ConfigError, before the first tensor, for adapters that cannot be merged layer by layer: DoRA, LoRA with its own
    bias, LoRA on a layer whose weight is tied to another layer's, and adapters that are not LoRA.
    """
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    for name, layer in layers.items():
        _check_mergeable(name, layer)
    _check_untied(model, layers)
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if ".original_module." in f".{name}" or _belongs_to_adapter(owner, layers):
            continue
        weight = whole(_dequantised(model.get_submodule(owner), parameter))
        layer = layers.get(owner.removesuffix(".base_layer")) if owner.endswith(".base_layer") else None
        dtype = weight.dtype
        if layer is not None and leaf == "weight" and not layer.merged and not layer.disable_adapters:
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A or adapter in getattr(layer, "lora_embedding_A", {}):
                    # The adapter is often float32 and the weight bfloat16: the sum is rounded once.
                    weight = weight + whole(layer.get_delta_weight(adapter)).to(weight.device)
        yield _plain_name(name), weight.to(dtype)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, detached; every rank must call this if it is sharded over ranks."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def _dequantised(module: nn.Module, parameter: Tensor) -> Tensor:
    """The weight in floating point. bitsandbytes packs a quantised weight and adds `quant_state`."""
    if getattr(parameter, "quant_state", None) is None:
        return parameter
    from peft.utils.integrations import dequantize_module_weight  # pyright: ignore[reportMissingImports]

    return dequantize_module_weight(module)


def _plain_name(name: str) -> str:
    """`layer.base_layer.weight` becomes `layer.weight`; `head.modules_to_save.default.weight` becomes `head.weight`."""
    parts = [part for part in name.split(".") if part != "base_layer"]
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        del parts[at : at + 2]
    return ".".join(parts)


def _belongs_to_adapter(owner: str, layers: dict[str, Any]) -> bool:
    """Whether the module `owner` is part of a LoRA layer, but not of the layer that this one wraps."""
    path = owner.split(".")
    for depth in range(len(path), 0, -1):
        if ".".join(path[:depth]) in layers:
            return depth == len(path) or path[depth] != "base_layer"
    return False


def _check_mergeable(name: str, layer: Any) -> None:
    kind = type(layer).__name__
    if not hasattr(layer, "lora_A") or not hasattr(layer, "get_delta_weight"):
        raise ConfigError(f"{name} has an adapter ({kind}) that is not LoRA, and its weights cannot be merged; use LoRA")
    for adapter in layer.active_adapters:
        for option in ("use_dora", "lora_bias"):
            if getattr(layer, option, {}).get(adapter, False):
                raise ConfigError(f"the adapter {adapter!r} of {name} has {option} = True and cannot be merged; use plain LoRA")


def _check_untied(model: nn.Module, layers: dict[str, Any]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        if len(tied) > 1 and any(name.rpartition(".")[0].removesuffix(".base_layer") in layers for name in tied):
            raise ConfigError(
                f"an adapter is on a tied weight ({' = '.join(map(_plain_name, tied))}), and merging would untie it; leave "
                "embeddings and head out of the adapter's targets"
            )
