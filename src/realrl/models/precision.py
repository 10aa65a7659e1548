"""Choose the precision for "auto" in a recipe, and warn if a precision set by name is slow on this machine."""

from __future__ import annotations

from collections.abc import Mapping

from realrl.config import Config
from realrl.system.hardware import Rates, Speed

# The recipe keys that may be "auto".
_KEYS = (("model", "dtype"), ("model", "autocast"), ("sampling", "dtype"))
# A precision gets a warning if it is slower than float32 by this factor.
_SLOW = 1.5


def has_auto(config: Config) -> bool:
    """Whether any precision in the recipe is "auto"."""
    return any(getattr(getattr(config, section), key) == "auto" for section, key in _KEYS)


def settle(config: Config, rates: Rates) -> Config:
    """The recipe with each "auto" replaced by the faster precision on a machine with these rates.

    Weights become bfloat16 only if no small update is lost: with LoRA, which freezes them, or with `optim.master_weights`.
    """
    model, sampling = config.model, config.sampling
    keeps_updates = model.lora is not None or config.optim.master_weights
    dtype, autocast, sampled = model.dtype, model.autocast, sampling.dtype
    if dtype == "auto":
        dtype = "bfloat16" if keeps_updates and rates.trains_in_bfloat16 else "float32"
    if autocast == "auto":
        # bfloat16 weights need no autocast.
        autocast = "bfloat16" if dtype == "float32" and rates.trains_in_bfloat16 else "none"
    if sampled == "auto":
        # A quantised model has no bfloat16 copy for sampling.
        copied = dtype == "float32" and model.quantize == "none" and rates.samples_in_bfloat16
        sampled = "bfloat16" if copied else "same"
    return _with(config, {"model": {"dtype": dtype, "autocast": autocast}, "sampling": {"dtype": sampled}})


def settle_as_before(config: Config, before: Config) -> Config:
    """The recipe with each "auto" replaced by the value in `before`, the recipe that the run saved."""
    changes: dict[str, dict[str, str]] = {"model": {}, "sampling": {}}
    for section, key in _KEYS:
        if getattr(getattr(config, section), key) == "auto":
            changes[section][key] = getattr(getattr(before, section), key)
    return _with(config, changes)


def settle_for_gpus(config: Config) -> Config:
    """The recipe with each "auto" replaced for a GPU, where bfloat16 is always faster, or by float32 if it names a CPU."""
    cpu = config.model.device == "cpu"
    return settle(config, Rates("cpu" if cpu else "cuda", 1, Speed(1, 1), None if cpu else Speed(2, 2)))


def precision_notes(rates: Rates, uses: Mapping[str, str], remedy: str) -> list[str]:
    """One line with the precision of each use ("training" or "sampling" → "float32" or "bfloat16") and the measured rates,
    then a warning that ends with `remedy` for each use that is slow on this machine."""
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
    """ "float32" or "bfloat16": the dtype of training's matrix products, for a recipe without "auto"."""
    return "bfloat16" if "bfloat16" in (config.model.dtype, config.model.autocast) else "float32"


def sampling_dtype(config: Config) -> str:
    """ "float32" or "bfloat16": the dtype of sampling, for a recipe without "auto"."""
    return config.model.dtype if config.sampling.dtype == "same" else config.sampling.dtype


def _with(config: Config, changes: dict[str, dict[str, str]]) -> Config:
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update=sections)


def _shown(speed: Speed) -> str:
    return f"{speed.forward / 1e9:.0f} and {speed.backward / 1e9:.0f} GFLOP/s"
