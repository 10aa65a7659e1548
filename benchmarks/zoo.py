"""Tiny random causal language models of every architecture that the installed transformers can build on a CPU without more packages.

    python benchmarks/zoo.py [NAME...]

A model is made from its configuration class: sizes by the names that exist in it (`SIZES`), one layer of each kind, windows and
chunks shorter than the rows that it is tried on (`WINDOW`), and what `EXCEPTIONS` says of its type. `VARIANTS` are options of an
architecture that change what it computes. Weights are drawn from a seed, and larger than those of an initialised model: attention
is sharp and the next token far from uniform, so that a mistake in either shows. Prints what was built.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, HIDDEN, LAYERS, WINDOW, POSITIONS = 128, 32, 3, 6, 64
END = 1
# A model with more parameters has sizes that are not named yet.
LARGEST = 1_000_000

# By the names of configurations; the first of its names that a configuration has counts.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "emb_dim", "lru_width", "word_embed_proj_dim", "embedding_dim"), HIDDEN
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "dff", "dim_ff", "ffn_hidden_size", "d_inner", "n_inner"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "feed_forward_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("dense_intermediate_size", "expert_ffn_hidden_size", "shared_experts_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "router_hidden_size", "prefix_dense_intermediate_size"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "dim_head", "d_head", "attention_head_size", "kv_channels"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), POSITIONS),
    **dict.fromkeys(("context_length", "max_target_positions"), POSITIONS),
    # Windows, chunks of attention and of recurrence.
    **dict.fromkeys(("sliding_window", "sliding_window_size", "window_size", "attention_window_size"), WINDOW),
    **dict.fromkeys(("attention_chunk_size", "mamba_chunk_size", "chunk_size", "block_size"), 8),
    "local_attention": 2 * WINDOW,
    "rel_extent": WINDOW,
    "d_rel": 4,
    # Mixtures of experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("moe_layer_start_index", "num_dense_layers"), 1),
    "moe_layer_end_index": LAYERS - 1,
    "zero_expert_num": 2,
    "moe_num_shared_experts": 1,
    # Compressed keys and values.
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "gated_norm_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    # Indexers choose fewer keys than a row has.
    "index_topk": WINDOW,
    "index_n_heads": 2,
    "index_head_dim": 8,
    # Recurrent layers.
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_dt_rank", "time_step_rank"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    "mamba_d_ssm": 64,
    "n_groups": 1,
    # Other.
    "rotary_dim": 4,
    **dict.fromkeys(("logit_scale", "logits_mup_width_multiplier"), 1.0),
    "hidden_size_per_layer_input": 8,
    "query_pre_attn_scalar": 8,
    "laurel_rank": 8,
    "initializer_range": 0.2,
    "is_decoder": True,
    "add_cross_attention": False,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": END,
}

# Not decoders of text alone, or not to be had at this size; the reason stands beside each.
LEFT_OUT = {
    "blt": "patches of bytes from a second model",
    "gemma3n": "its vision tower needs the package timm (gemma3n_text is here)",
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "a draft model, which reads the keys of another"),
    **dict.fromkeys(("git", "phi4_multimodal", "moss_transcribe_diarize", "got_ocr2"), "made with towers for images or sound"),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "AutoModelForCausalLM cannot make it from its own configuration"),
}

# What names and sizes alone do not tell.
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_QSA = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 4}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": HIDDEN, "ffn_hidden_size": 24, "moe_top_k": 2},
    },
    "gemma3": {"outer": {"vision_config": {**_VISION, "image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4}},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"head_dim": 16},
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _QSA),
    "reformer": {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": HIDDEN},
    "roc_bert": {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY},
    "xlm": {"causal": True},
    "xlstm": {"chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


@dataclass(frozen=True, slots=True)
class Family:
    """A model to build: its `model_type`, and what its configuration has otherwise than `SIZES` and `EXCEPTIONS` say."""

    name: str
    model_type: str
    options: Mapping[str, Any] = field(default_factory=dict)


def config_of(family: Family) -> PreTrainedConfig:
    """The configuration of the tiny model."""
    kind = CONFIG_MAPPING[family.model_type]
    special = {**EXCEPTIONS.get(family.model_type, {}), **family.options}
    if "text_config" in getattr(kind, "sub_configs", {}):
        inner = kind.sub_configs["text_config"]
        inner = type(kind().text_config) if inner.__name__ == "AutoConfig" else inner
        outer = special.pop("outer", {})
        return kind(text_config=_sized(inner, special).to_dict(), **outer)
    return _sized(kind, special)


def _sized(kind: type[PreTrainedConfig], special: Mapping[str, Any]) -> PreTrainedConfig:
    default = kind().to_dict()
    names = set(default) | set(getattr(kind, "attribute_map", {}))
    options = {name: value for name, value in SIZES.items() if name in names}
    if "kv_lora_rank" in names:
        # Keys of all heads come from one compressed state.
        options["num_key_value_heads"] = SIZES["num_attention_heads"]
    layers = special.get("num_hidden_layers", LAYERS)
    for name, values in default.items():
        if name.endswith("_types") or name == "layers_block_type":
            if isinstance(values, list) and values and isinstance(values[0], str):
                # One of each kind, in the order in which they come.
                kinds = list(dict.fromkeys(values))
                options[name] = [kinds[layer % len(kinds)] for layer in range(layers)]
    return kind(**{**options, **special})


def build(family: Family, seed: int = 0) -> PreTrainedModel:
    """The model in float32 and eval mode, its weights drawn from `seed` and the family's name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{family.name} {seed}".encode()))
        config = config_of(family)
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(config).num_parameters()
        if size > LARGEST:
            raise ValueError(f"{family.name} would have {size:,} parameters; name its sizes in EXCEPTIONS")
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        sharpen(model)
    return model.eval()


@torch.no_grad()
def sharpen(model: PreTrainedModel) -> None:
    """Draw the weights of matrices and embeddings anew, larger; move those of norms, and biases, off 1 and 0.

    What belongs to a recurrence (decays, steps, convolutions) stays as the model's class initialised it.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                parameter.normal_(std=0.5)
            elif isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                if name == "weight":
                    inputs = parameter.shape[0] if type(module).__name__ == "Conv1D" else parameter.shape[1]
                    parameter.normal_(std=1.5 * inputs**-0.5)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            elif "norm" in type(module).__name__.lower() and parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    head = model.get_output_embeddings()
    if head is not None:
        head.weight.normal_(std=0.5)


FAMILIES: dict[str, Family] = {name: Family(name, name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in LEFT_OUT}


@torch.no_grad()
def describe(model: PreTrainedModel) -> str:
    """Parameters, and on a random row: the entropy as a share of log V, and what another first token changes (nats)."""
    ids = torch.randint(3, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 0] = 3 + (ids[0, 0] - 2) % (VOCABULARY - 3)
    logprobs, changed = (model(input_ids=row).logits[0].double().log_softmax(-1) for row in (ids, other))
    entropy = -(logprobs.exp() * logprobs).sum(-1).mean() / torch.tensor(float(VOCABULARY)).log()
    own = (logprobs - changed)[1:-1].gather(1, ids[0, 2:, None]).abs()
    return (
        f"{model.num_parameters():>8,} parameters, entropy {entropy:.2f}, first token {own.mean():.2g}, last {own[-1, 0]:.2g}"
    )


def main() -> None:
    torch.set_num_threads(1)
    built = 0
    names = sys.argv[1:] or list(FAMILIES)
    for name in names:
        try:
            print(f"{name:24} {describe(build(FAMILIES[name]))}", flush=True)
            built += 1
        except Exception as error:  # noqa: BLE001
            print(f"{name:24} {type(error).__name__}: {str(error).strip()[-300:]!r}", flush=True)
    print(f"{built} of {len(names)}")


if __name__ == "__main__":
    main()
