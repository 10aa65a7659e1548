"""LoRA with PEFT, 4-bit weights, and the frozen reference model of a run.

PEFT replaces linear layers inside the transformers model, without a wrapper around it. Adapters are always float32, because
bfloat16 would round away an update of 1e-6.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, PreTrainedModel

from realrl.config import LoraSection
from realrl.errors import ConfigError
from realrl.models.modes import evaluating
from realrl.seeding import derive_seed

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_NAME = "default"
# How many weights share a scale in NF4.
_QUANTISED_BLOCK = 64
# PEFT imports bitsandbytes, which warns about an optional inference kernel that is not installed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def add_lora(model: PreTrainedModel, lora: LoraSection, *, seed: int) -> None:
    """Freeze the weights and add a new adapter to each target: W + (alpha / rank) B A. B is 0 at first.

    Raises ConfigError if PEFT is not installed, or if the model does not have the targets.
    """
    peft: Any = _peft("model.lora")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lora"))
        _inject(model, config, f"model.lora.targets = {lora.targets!r}")


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Load the LoRA adapter in `folder`, written by `save_pretrained` or PEFT, into its base model, ready for training."""
    peft: Any = _peft(f"the adapter {folder}")
    if adapter_settings(folder).get("megatron_config"):
        # PEFT would import the module that megatron_core names.
        raise ConfigError(f"{folder / ADAPTER_CONFIG} names code in megatron_config, which realrl never runs; remove it")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} is not a valid adapter configuration: {error}") from error
    if not isinstance(config, peft.LoraConfig) or not (folder / _ADAPTER_WEIGHTS).is_file():
        raise ConfigError(f"{folder} has no LoRA adapter in {_ADAPTER_WEIGHTS}; realrl reads no other kind of adapter")
    config.inference_mode = False
    config.lora_dropout = 0.0
    _inject(model, config, str(folder / ADAPTER_CONFIG))
    # In PEFT's own files, names start with the prefix of its wrapper.
    try:
        saved = load_file(folder / _ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{folder / _ADAPTER_WEIGHTS} cannot be read: {error}; get the file again") from error
    weights = {name.removeprefix("base_model.model."): value for name, value in saved.items()}
    try:
        result = peft.set_peft_model_state_dict(model, weights, adapter_name=_NAME)
    except RuntimeError as error:
        raise ConfigError(f"{folder} does not fit its base model: {error}") from error
    absent = [name for name in result.missing_keys if "lora_" in name]
    if absent or result.unexpected_keys:
        raise ConfigError(f"{folder} does not fit its base model: {', '.join([*absent, *result.unexpected_keys][:3])}")


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The content of the adapter's configuration file; raises ConfigError if it is damaged."""
    try:
        settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} is not valid JSON: {error}; get the file again") from error
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{folder / ADAPTER_CONFIG} is not a valid adapter configuration: it holds a {type(settings).__name__}"
        )
    return settings


def base_of(folder: Path) -> str:
    """`base_model_name_or_path` of the adapter in `folder`; raises ConfigError if it is missing."""
    base = adapter_settings(folder).get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} does not say which model is the base; set base_model_name_or_path")
    return str(base)


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether the model has LoRA layers."""
    return bool(_layers(model))


def check_same_lora(model: PreTrainedModel, lora: LoraSection | None, checkpoint: str) -> None:
    """Raise ConfigError if the checkpoint's model was trained with another `model.lora` than the recipe's."""
    found: Any = model.peft_config[_NAME] if has_adapters(model) else None
    saved = "no LoRA" if found is None else f"LoRA of rank {found.r} and alpha {found.lora_alpha}"
    wanted = "no LoRA" if lora is None else f"LoRA of rank {lora.rank} and alpha {lora.alpha}"
    if saved != wanted:
        raise ConfigError(
            f"{checkpoint} was trained with {saved}, but model.lora of the recipe asks for {wanted}; use the same in both"
        )


@torch.no_grad()
def merge_adapters(model: PreTrainedModel) -> None:
    """Add the adapters, if any, to the weights and remove their layers; all weights become trainable again.

    Raises ConfigError for 4-bit weights, because rounding would lose what the adapters learned.
    """
    layers = _layers(model)
    if not layers:
        return
    host: Any = model
    for name, layer in layers.items():
        if hasattr(layer.get_base_layer().weight, "quant_state"):
            raise ConfigError(
                f"{model.name_or_path} is an adapter, and an adapter cannot be merged into weights in 4 bits; set "
                "model.quantize = 'none'"
            )
        layer.merge()
        host.set_submodule(name, layer.get_base_layer())
    del host.peft_config
    host._hf_peft_config_loaded = False
    model.requires_grad_(True)


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Context manager in which the model computes with its frozen weights alone."""
    _switch(model, on=False)
    try:
        yield
    finally:
        _switch(model, on=True)


def _switch(model: PreTrainedModel, *, on: bool) -> None:
    # PEFT changes requires_grad with the adapters; restore it, since a sharded model reads it only once.
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for layer in _layers(model).values():
        layer.enable_adapters(on)
    for parameter, wanted in gradients:
        parameter.requires_grad_(wanted)


class Reference:
    """The frozen model that gives reference log-probabilities. Use `with reference as model:` for a forward pass.

    It is a separate copy or, if `shared`, the policy with its adapters off, which takes no extra memory. With `device`, the
    copy moves to `device` for the `with` block and back afterwards.
    """

    def __init__(self, model: PreTrainedModel, *, shared: bool = False, device: torch.device | None = None) -> None:
        self._model = model
        self._shared = shared
        self._device = device
        self._rest = model.device
        if not shared:
            model.requires_grad_(False).eval()

    @property
    def own(self) -> PreTrainedModel | None:
        """The separate copy; None if the policy itself is used."""
        return None if self._shared else self._model

    def __enter__(self) -> PreTrainedModel:
        self._undo = ExitStack()
        self._undo.enter_context(torch.no_grad())
        if self._shared:
            self._undo.enter_context(adapters_off(self._model))
            self._undo.enter_context(evaluating(self._model))
        elif self._device is not None:
            self._undo.callback(torch.nn.Module.to, self._model, self._rest)
            torch.nn.Module.to(self._model, self._device)
        return self._model

    def __exit__(self, *error: object) -> None:
        self._undo.close()


def quantisation(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Settings for NF4 weights that compute in `dtype`; raises ConfigError if bitsandbytes is not installed."""
    need_bitsandbytes("model.quantize = '4bit'")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def guard_quantised(model: PreTrainedModel) -> None:
    """Protect a 4-bit model from two problems of bitsandbytes on CPUs.

    With AVX-512 BF16, the first pass in eval mode repacks the weights for good, for a kernel that passes no gradient: turned
    off. Rows that do not fill blocks of 64 are read with the scale of another block: raises ConfigError.
    """
    bnb = need_bitsandbytes("model.quantize = '4bit'")
    modules: Any = model.modules()
    for module in modules:
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            if module.weight.device.type == "cpu" and module.in_features % _QUANTISED_BLOCK:
                raise ConfigError(
                    f"model.quantize = '4bit': a linear layer has {module.in_features} inputs, but on a CPU bitsandbytes "
                    f"supports only multiples of {_QUANTISED_BLOCK}; use a GPU, or set model.quantize = 'none'"
                )


def need_bitsandbytes(what: str) -> Any:
    """Import bitsandbytes; if it is not installed, raise a ConfigError that says what needs it (`what`)."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{what} needs the package bitsandbytes: pip install 'realrl[qlora]'")
    import bitsandbytes

    return bitsandbytes


def _peft(what: str) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(f"{what} needs the package peft: pip install 'realrl[lora]'")
    import peft

    return peft


def _inject(model: PreTrainedModel, config: Any, source: str) -> None:
    try:
        model.add_adapter(config, adapter_name=_NAME)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{source}: {str(error).strip().splitlines()[0]}") from error
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != ("lora_" in name):
            raise ConfigError(f"{source} would train {name}, but only adapters can be trained here; remove it")
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    if not getattr(model, "_hf_peft_config_loaded", False):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
