"""Tiny real models, made on the spot; shapes of the numerical rooms are checked at run time in every test."""

import os
from pathlib import Path

# Before huggingface_hub is imported: no test waits for a hub that it cannot reach.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported, and for every child: `make test` runs as many tests at a time as there are cores. Threads that wait
# for each other on a core that is busy cost several times the work itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers
from jaxtyping import install_import_hook
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

# Inputs check themselves, which is what their tests try.
_OBJECTIVES = Path(__file__).parents[1] / "src" / "realrl" / "objectives"
_CHECKED = [
    f"realrl.objectives.{file.stem}" for file in _OBJECTIVES.glob("*.py") if file.stem not in ("__init__", "inputs", "groups")
]
install_import_hook([*_CHECKED, "realrl.models.logprobs", "realrl.sampling"], "beartype.beartype")

from realrl.models.adder import character_tokenizer  # noqa: E402  the hook must come first


@pytest.fixture(autouse=True)
def process_wide_settings():
    """What training and the commands set for their own process is put back after each test."""
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    transformers.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A saved random Qwen2 (32 wide, 2 layers) over the character tokenizer, with two end tokens."""
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        eos_token_id=2,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    newline = tokenizer.convert_tokens_to_ids("\n")
    model.generation_config = GenerationConfig(eos_token_id=[2, newline], pad_token_id=0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
