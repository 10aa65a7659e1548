"""LoRA through PEFT inside the model, weights in 4 bits, and the frozen reference model of a run.

The model stays the transformers model that it was: PEFT puts its layers in the place of linear ones. Adapters are float32 in
a model of any type, because an update of 1e-6 vanishes in bfloat16.
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
# Weights that share a scale in NF4.
_QUANTISED_BLOCK = 64
# bitsandbytes (PEFT imports it) warns of an optional kernel for inference that is not installed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def add_lora(model: PreTrainedModel, lora: LoraSection, *, seed: int) -> None:
    """Freeze the weights and put a fresh adapter beside each target: W + (alpha / rank) B A with B = 0, so W to begin with.

    Raises ConfigError without PEFT and for targets that the model does not have.
    """
    peft: Any = _peft("model.lora")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lora"))
        _inject(model, config, f"model.lora.targets = {lora.targets!r}")


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the LoRA that `save_pretrained` or PEFT wrote into `folder` into its base model, ready to be trained further."""
    peft: Any = _peft(f"the adapter {folder}")
    if gradient_settings(folder).get("megatron_config"):
        # PEFT would import the module that megatron_core names.
        raise ConfigError(f"{folder / ADAPTER_CONFIG} names code in megatron_config, which is not run here; take it out")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} is no adapter's configuration: {error}") from error
    if not isinstance(config, peft.LoraConfig) or not (folder / _ADAPTER_WEIGHTS).is_file():
        raise ConfigError(f"{folder} holds no LoRA in {_ADAPTER_WEIGHTS}, the one kind of adapter that is read here")
    config.inference_mode = False
    config.lora_dropout = 0.0
    _inject(model, config, str(folder / ADAPTER_CONFIG))
    # PEFT's own files carry the prefix of its wrapper.
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


def gradient_settings(folder: Path) -> dict[str, Any]:
    """What the adapter's configuration file holds; ConfigError where it is damaged."""
    try:
        settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} is no JSON: {error}; get the file again") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{folder / ADAPTER_CONFIG} is no adapter's configuration: it holds a {type(settings).__name__}")
    return settings


def base_of(folder: Path) -> str:
    """`base_model_name_or_path` of the adapter in `folder`; ConfigError where it names none."""
    base = gradient_settings(folder).get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} does not say which model the adapter belongs to: base_model_name_or_path")
    return str(base)


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether LoRA is in the model."""
    return bool(_layers(model))


def check_same_lora(model: PreTrainedModel, lora: LoraSection | None, checkpoint: str) -> None:
    """ConfigError where the recipe's `model.lora` is not what the checkpoint's model was trained with."""
    found: Any = model.peft_config[_NAME] if has_adapters(model) else None
    saved = "no LoRA" if found is None else f"LoRA of rank {found.r} and alpha {found.lora_alpha}"
    wanted = "no LoRA" if lora is None else f"LoRA of rank {lora.rank} and alpha {lora.alpha}"
    if saved != wanted:
        raise ConfigError(
            f"{checkpoint} was trained with {saved}, and model.lora of the recipe asks for {wanted}; use the same"
        )


@torch.no_grad()
def merge_adapters(model: PreTrainedModel) -> None:
    """Add the adapters, if any, to their weights and take their layers out; all weights are trainable again.

    Raises ConfigError for weights in 4 bits, which would lose what the adapters learned.
    """
    layers = _layers(model)
    if not layers:
        return
    host: Any = model
    for name, layer in layers.items():
        if hasattr(layer.get_base_layer().weight, "quant_state"):
            raise ConfigError(
                f"{model.name_or_path} is an adapter, and what it learned cannot be added to weights in 4 bits; set "
                "model.quantize = 'none'"
            )
        layer.merge()
        host.set_submodule(name, layer.get_base_layer())
    del host.peft_config
    host._hf_peft_config_loaded = False
    model.requires_grad_(True)


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model computes what its frozen weights alone give."""
    _switch(model, on=False)
    try:
        yield
    finally:
        _switch(model, on=True)


def _switch(model: PreTrainedModel, *, on: bool) -> None:
    """PEFT turns gradients on and off with the adapters; here they stay as they are (a sharded model looks at them once)."""
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for layer in _layers(model).values():
        layer.enable_adapters(on)
    for parameter, wanted in gradients:
        parameter.requires_grad_(wanted)


class Reference:
    """The frozen model behind the reference log-probabilities: `with reference as model:` gives it ready for a forward pass.

    It is a copy of its own, or, where `shared`, the policy with its adapters off, which takes no memory. With `device` the
    copy rests where it is and is on `device` only within.
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
        """The copy, where there is one."""
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
    """NF4 weights that are multiplied in `dtype`; ConfigError without bitsandbytes."""
    need_bitsandbytes("model.quantize = '4bit'")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def guard_quantised(model: PreTrainedModel) -> None:
    """Keep a model in 4 bits from what bitsandbytes does on CPUs.

    With AVX-512 BF16 it repacks weights at the first pass in eval mode, for a kernel that does not let a gradient through,
    and never turns back. Rows that do not fill blocks of 64 come back with the scale of another block: a ConfigError.
    """
    bnb = need_bitsandbytes("model.quantize = '4bit'")
    modules: Any = model.modules()
    for module in modules:
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            if module.weight.device.type == "cpu" and module.in_features % _QUANTISED_BLOCK:
                raise ConfigError(
                    f"model.quantize = '4bit' on the CPU: a linear layer with {module.in_features} inputs, and bitsandbytes "
                    f"gets only multiples of {_QUANTISED_BLOCK} right there; use a GPU, or model.quantize = 'none'"
                )


def need_bitsandbytes(what: str) -> Any:
    """The package; ConfigError that names `what` wants it where it is not installed."""
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
            raise ConfigError(f"{source} would train {name}, and adapters are what is trained; leave it out")
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    """PEFT's layers by name."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
