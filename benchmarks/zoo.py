"""Tiny random causal language models of every architecture that the installed transformers builds without more packages.

    python benchmarks/zoo.py [NAME...]

A model is made from its configuration class: sizes by the names that exist in it (`SIZES`), layers of every kind, windows and
chunks shorter than the rows that it is tried on, and what `EXCEPTIONS` says of its type. `VARIANTS` are options of an
architecture that change what it computes. Weights are drawn from a seed, and larger than those of a fresh model: attention is
sharp and the next token far from uniform, so that a mistake in either shows. Prints what was built.
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
    "dim_model_base": HIDDEN,
    "scale_emb": 1,
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
    "dots3_note": "made with towers for images and sound (dots3_note_text is here)",
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
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": HIDDEN, "ffn_hidden_size": 24, "moe_top_k": 2},
    },
    "dots3_note_text": {
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "head_dim")},
        **{f"swa_{name}": 8 for name in ("qk_nope_head_dim", "v_head_dim")},
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
        "attn_layers": ["local", "lsh", "local"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": HIDDEN},
    "roc_bert": {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY},
    "xlm": {"causal": True},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0, "chunk_size": 16},
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
    kind: Any = CONFIG_MAPPING[family.model_type]
    special = {**EXCEPTIONS.get(family.model_type, {}), **family.options}
    if "text_config" in getattr(kind, "sub_configs", {}):
        inner = kind.sub_configs["text_config"]
        inner = type(kind().text_config) if inner.__name__ == "AutoConfig" else inner
        outer = special.pop("outer", {})
        return kind(text_config=_sized(inner, special).to_dict(), **outer)
    return _sized(kind, special)


def _sized(kind: type[PreTrainedConfig], special: Mapping[str, Any]) -> PreTrainedConfig:
    default = kind().to_dict()
    aliases = getattr(kind, "attribute_map", {})
    options = {name: value for name, value in SIZES.items() if name in default or name in aliases}
    if "kv_lora_rank" in default:
        # Keys of all heads come from one compressed state.
        options["num_key_value_heads"] = SIZES["num_attention_heads"]
    layers = special.get("num_hidden_layers", LAYERS)
    for name, values in default.items():
        if name.endswith(("_types", "block_type")) and isinstance(values, list) and values and isinstance(values[0], str):
            # All kinds in turn, in the order in which they come.
            kinds = list(dict.fromkeys(values))
            options[name] = [kinds[layer % len(kinds)] for layer in range(layers)]
    return kind(**{aliases.get(name, name): value for name, value in [*options.items(), *special.items()]})


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


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


# Rows pass what the embeddings were made for.
_SHORT = 16
_LONG_ROPE = _rope("longrope", short_factor=[1.0, 1.2, 1.5, 2.0], long_factor=[1.0, 4.0, 8.0, 16.0])
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=_SHORT)
_SLIDING = ["full_attention", "sliding_attention", "full_attention"]

# By "type, what": what its configuration has besides.
VARIANTS: dict[str, dict[str, Any]] = {
    # Rotary embeddings.
    "llama, dynamic rope": {**_rope("dynamic", factor=4.0), "max_position_embeddings": _SHORT},
    "qwen2, dynamic rope": {**_rope("dynamic", factor=4.0), "max_position_embeddings": _SHORT},
    "llama, linear rope": _rope("linear", factor=4.0),
    "llama, yarn": _YARN,
    "qwen3, yarn": _YARN,
    "llama, longrope": {**_LONG_ROPE, "original_max_position_embeddings": _SHORT},
    "phi3, longrope": {**_LONG_ROPE, "original_max_position_embeddings": _SHORT},
    "phi3, longrope, short rows": {**_LONG_ROPE, "original_max_position_embeddings": POSITIONS},
    "phimoe, longrope": {
        "rope_parameters": {**_LONG_ROPE["rope_parameters"], "short_mscale": 1.0, "long_mscale": 1.2},
        "original_max_position_embeddings": _SHORT,
    },
    "minicpm3, longrope": {**_LONG_ROPE, "original_max_position_embeddings": _SHORT},
    "ministral3, scaled queries": _rope(
        "yarn", factor=4.0, original_max_position_embeddings=8, llama_4_scaling_beta=0.5, mscale=1.0, mscale_all_dim=1.0
    ),
    "llama4_text, scaled queries": {"floor_scale": 8, "attn_scale": 0.5, "no_rope_layers": [1, 0, 1]},
    "inkling_text, scaled queries": {"log_scaling_n_floor": 8, "log_scaling_alpha": 0.5},
    "smollm3, without rope": {"no_rope_layers": [1, 0, 1]},
    "granitemoehybrid, rope": {"position_embedding_type": "rope"},
    "zamba2, rope": {"use_mem_rope": True},
    # Windows on and off.
    "qwen2, window": {"use_sliding_window": True, "layer_types": _SLIDING},
    "qwen3, window": {"use_sliding_window": True, "layer_types": _SLIDING},
    "qwen2_moe, window": {"use_sliding_window": True, "layer_types": _SLIDING},
    "qwen3_moe, window": {"use_sliding_window": True, "sliding_window": WINDOW},
    "smollm3, window": {"use_sliding_window": True, "layer_types": _SLIDING},
    "dots1, window": {"layer_types": _SLIDING},
    "laguna, window": {"layer_types": _SLIDING},
    "mistral, no window": {"sliding_window": None},
    "mixtral, no window": {"sliding_window": None},
    "phi3, no window": {"sliding_window": None},
    "starcoder2, no window": {"sliding_window": None},
    # Positions other than rotary.
    "falcon, alibi": {"alibi": True},
    "falcon, new decoder": {"new_decoder_architecture": True},
    "falcon, many heads": {"multi_query": False, "num_kv_heads": 4, "parallel_attn": False, "bias": True},
    "mpt, capped": {"attn_config": {"clip_qkv": 1.0, "softmax_scale": 0.5}, "logit_scale": 0.5},
    # Fewer positions than rows have tokens.
    "gpt2, past its positions": {"n_positions": _SHORT},
    "opt, past its positions": {"max_position_embeddings": _SHORT},
    "mpt, past its positions": {"max_seq_len": _SHORT},
    "gpt_bigcode, past its positions": {"n_positions": _SHORT},
    "gptj, past its positions": {"n_positions": _SHORT},
    # Noise in train mode.
    "llama, attention dropout": {"attention_dropout": 0.3},
    "qwen3, attention dropout": {"attention_dropout": 0.3},
    "gpt_neox, dropout": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
    "falcon, dropout": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
    "phi, dropout": {"resid_pdrop": 0.2, "embd_pdrop": 0.2},
    "stablelm, dropout": {"hidden_dropout": 0.2},
    "opt, layers dropped": {"dropout": 0.0, "layerdrop": 0.5},
    "xglm, layers dropped": {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.5},
    "mixtral, jitter": {"router_jitter_noise": 0.3},
    "minimax, jitter": {"router_jitter_noise": 0.3},
    "llama4_text, jitter": {"router_jitter_noise": 0.3},
    "phimoe, jitter": {"router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "dbrx, jitter": {
        "attn_config": EXCEPTIONS["dbrx"]["attn_config"],
        "ffn_config": {**EXCEPTIONS["dbrx"]["ffn_config"], "moe_jitter_eps": 0.3},
    },
    # Caps, scales and norms.
    "cohere, scaled logits": {"logit_scale": 0.3, "use_qk_norm": True},
    "granite, multipliers": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.5,
    },
    "falcon_h1, multipliers": {
        "lm_head_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        "mlp_multipliers": [0.5, 2.0],
        "key_multiplier": 2.0,
        "ssm_multipliers": [0.5, 2.0, 1.5, 0.7, 1.0],
    },
    "gemma2, low caps": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0},
    "gemma3_text, low caps": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0},
    "nanochat, low cap": {"final_logit_softcapping": 2.0},
    "recurrent_gemma, low cap": {"logits_soft_cap": 2.0},
    "minicpm3, scaled": {"scale_emb": 3, "scale_depth": 0.7, "dim_model_base": 16},
    "olmo, clipped": {"clip_qkv": 0.5},
    "olmoe, clipped": {"clip_qkv": 0.5},
    "phi, normed": {"qk_layernorm": True},
    "stablelm, normed": {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True},
    "gpt_neox, not parallel": {"use_parallel_residual": False},
    "gpt2, scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "gpt_bigcode, many heads": {"multi_query": False},
    "opt, norm after": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "bloom, norm after": {"apply_residual_connection_post_layernorm": True},
    # Heads.
    "llama, tied": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "qwen2, tied": {"tie_word_embeddings": True},
    "qwen3, tied": {"tie_word_embeddings": True},
    "phimoe, head with bias": {"lm_head_bias": True, "attention_bias": True},
    "zaya, head with bias": {"lm_head_bias": True, "tie_word_embeddings": False},
    # Attention to some tokens, and experts.
    "doge, attention to all": {"keep_window_size": 2 * POSITIONS},
    "doge, few tokens kept": {"keep_window_size": WINDOW},
    "doge, experts": {"is_moe": True, "num_experts": 16, "keep_window_size": 2 * POSITIONS},
    "deepseek_v32, attention to all": {"index_topk": POSITIONS},
    "glm_moe_dsa, attention to all": {"index_topk": POSITIONS},
    "deepseek_v3, groups of experts": {"n_routed_experts": 8, "n_group": 4, "topk_group": 2},
    "deepseek_v2, groups of experts": {
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "q_lora_rank": None,
    },
    "minimax_m3_vl_text, sparse": {
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "index_head_dim": 8,
        "index_n_heads": 2,
    },
    "gemma4_text, experts": {"enable_moe_block": True},
    "gemma4_text, shared keys": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text, keys are values": {"attention_k_eq_v": True, "num_global_key_value_heads": 2},
    "laguna, capped router": {"moe_router_logit_softcapping": 1.0},
    "cohere2_moe, shared": {"num_shared_experts": 1, "expert_selection_fn": "sigmoid"},
    "qwen4_exp_text, words": {
        "ple_layer_ids": [1],
        "ple_embed_dim": HIDDEN,
        "ngram_vocab_size_base": 200,
        "heads_per_ngram": 2,
        "split_ngram_parts": 1,
        "make_ngram_vocab_size_divisible_by": 1,
    },
    "jamba, attention alone": {"attn_layer_period": 1, "attn_layer_offset": 0},
    "nemotron_h, attention alone": {"layers_block_type": ["full_attention", "mlp", "full_attention"]},
}

FAMILIES: dict[str, Family] = {
    **{name: Family(name, name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in LEFT_OUT},
    **{name: Family(name, name.partition(",")[0], options) for name, options in VARIANTS.items()},
}


@torch.no_grad()
def describe(model: PreTrainedModel) -> str:
    """Parameters, and on a random row: the entropy as a share of log V, and what another first token changes (nats)."""
    ids = torch.randint(3, VOCABULARY, (1, _SHORT), generator=torch.Generator().manual_seed(0))
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
