"""A model's architecture without its weights, to compute costs before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from realrl.errors import ConfigError
from realrl.models.resolve import load_architecture

# Models of our recipes, for machines without access to the hub; values from each model's config.json.
_KNOWN: dict[str, PreTrainedConfig] = {
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=False,
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that determine its costs.

    `queries` and `keys` are the number of query or key heads × head size. `linear` is the number of weights in linear layers,
    without the head; `learning` is how many of them are trained.
    """

    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    linear: int
    learning: int
    head_learns: bool
    parameters: int
    trainable: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shape:
        """The shape of a model; the model may be on the "meta" device and may have adapters."""
        config: Any = model.config.get_text_config()
        heads = int(config.num_attention_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        head: Any = model.get_output_embeddings()
        weights = [
            (module.in_features * module.out_features, module.weight.requires_grad)
            for module in model.modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        ]
        return cls(
            layers=int(config.num_hidden_layers),
            hidden=int(config.hidden_size),
            intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
            queries=heads * size,
            keys=int(getattr(config, "num_key_value_heads", None) or heads) * size,
            vocabulary=int(config.vocab_size),
            linear=sum(count for count, _ in weights),
            learning=sum(count for count, learns in weights if learns),
            head_learns=bool(head.weight.requires_grad),
            parameters=model.num_parameters(),
            trainable=model.num_parameters(only_trainable=True),
        )


def meta_model(path: str, *, dtype: torch.dtype, trust_remote_code: bool = False) -> tuple[PreTrainedModel, bool]:
    """The model on the "meta" device, where weights have no values, and whether its own configuration was found.

    If not, our table of known models is used; raises ConfigError if the model is not in it."""
    found = True
    try:
        config = load_architecture(path, trust_remote_code=trust_remote_code)
    except ConfigError:
        if path not in _KNOWN:
            raise
        config, found = _KNOWN[path], False
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code), found
