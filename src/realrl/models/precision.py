"""What a recipe's precision "auto" means on this machine, and what to say where a named precision is slow here."""

from __future__ import annotations

from collections.abc import Mapping

from realrl.config import Config
from realrl.system.hardware import Rates, Speed

# The keys of a recipe that "auto" may stand for.
_KEYS = (("model", "dtype"), ("model", "autocast"), ("sampling", "dtype"))
# Slower than float32 by this factor: worth a word.
_SLOW = 1.5


def leaves_open(config: Config) -> bool:
    """Whether some precision of the recipe is "auto"."""
    return any(getattr(getattr(config, section), key) == "auto" for section, key in _KEYS)


def settle(config: Config, rates: Rates) -> Config:
    """The recipe with each "auto" replaced by the precision that is faster on a machine with these rates.

    Weights are bfloat16 only where that loses no update: frozen under LoRA, or with `optim.master_weights`. A recipe without
    "auto" comes back as it is.
    """
    model, sampling = config.model, config.sampling
    keeps_updates = model.lora is not None or config.optim.master_weights
    dtype, autocast, sampled = model.dtype, model.autocast, sampling.dtype
    if dtype == "auto":
        dtype = "bfloat16" if keeps_updates and rates.trains_in_bfloat16 else "float32"
    if autocast == "auto":
        # Weights in bfloat16 are multiplied in it without autocast.
        autocast = "bfloat16" if dtype == "float32" and rates.trains_in_bfloat16 else "none"
    if sampled == "auto":
        # A quantised model is sampled from as it is.
        copied = dtype == "float32" and model.quantize == "none" and rates.samples_in_bfloat16
        sampled = "bfloat16" if copied else "same"
    return _with(config, {"model": {"dtype": dtype, "autocast": autocast}, "sampling": {"dtype": sampled}})


def settle_as_before(config: Config, before: Config) -> Config:
    """The recipe with each "auto" replaced by what `before`, the recipe that a run has saved, decided."""
    changes: dict[str, dict[str, str]] = {"model": {}, "sampling": {}}
    for section, key in _KEYS:
        if getattr(getattr(config, section), key) == "auto":
            changes[section][key] = getattr(getattr(before, section), key)
    return _with(config, changes)


def settle_for_gpus(config: Config) -> Config:
    """The recipe with each "auto" replaced by what suits GPUs, which all multiply faster in bfloat16; on a CPU float32."""
    cpu = config.model.device == "cpu"
    return settle(config, Rates("cpu" if cpu else "cuda", 1, Speed(1, 1), None if cpu else Speed(2, 2)))


def precision_notes(rates: Rates, uses: Mapping[str, str], remedy: str) -> list[str]:
    """One line on the precision of each use ("training" or "sampling" → "float32" or "bfloat16") with the measured rates, and
    a warning that ends in `remedy` for a use that is slow on this machine."""
    chosen = ", ".join(f"{use} {dtype}" for use, dtype in uses.items())
    speeds = [f"float32 {_shown(rates.float32)}"]
    speeds.append(f"bfloat16 {_shown(rates.bfloat16)}" if rates.bfloat16 else f"bfloat16 raises an error: {rates.fault}")
    threads = f", {rates.threads} thread{'s' if rates.threads > 1 else ''}" if rates.device == "cpu" else ""
    lines = [f"precision: {chosen} (products forward and backward on this {rates.device}{threads}: {'; '.join(speeds)})"]
    for use, dtype in uses.items():
        if dtype != "bfloat16" or rates.device == "cuda":
            continue
        if rates.bfloat16 is None:
            lines.append(f"WARNING: {use} in bfloat16 raises an error on this machine; {remedy}")
            continue
        fast, slow = ((s.training if use == "training" else s.forward) for s in (rates.float32, rates.bfloat16))
        if fast > _SLOW * slow:
            lines.append(f"WARNING: {use} in bfloat16 is {fast / slow:.1f} times as slow as float32 on this machine; {remedy}")
    return lines


def training_dtype(config: Config) -> str:
    """ "float32" or "bfloat16": what forward and backward products of a settled recipe are computed in."""
    return "bfloat16" if "bfloat16" in (config.model.dtype, config.model.autocast) else "float32"


def sampling_dtype(config: Config) -> str:
    """ "float32" or "bfloat16": what a settled recipe samples in."""
    return config.model.dtype if config.sampling.dtype == "same" else config.sampling.dtype


def _with(config: Config, changes: dict[str, dict[str, str]]) -> Config:
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update=sections)


def _shown(speed: Speed) -> str:
    return f"{speed.forward / 1e9:.0f} and {speed.backward / 1e9:.0f} GFLOP/s"
