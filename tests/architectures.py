# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Tiny random models of any architecture of transformers, by its model type."""

from typing import Any

import torch
from made_models import build_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel


# Fields of any configuration, taken by those that have them
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "attention_hidden_size", "lru_width", "conv_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "shared_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "expansion_ratio", "mamba_expand"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), 64),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "state_size"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "mamba_d_state"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "time_step_rank", "mamba_dt_rank", "block_size"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "n_groups"), 1),
    **dict.fromkeys(("mamba_n_groups", "decoder_sparse_step", "attn_layer_offset", "expert_layer_offset"), 1),
    **dict.fromkeys(("attn_layer_period", "expert_layer_period", "full_attention_interval"), 2),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "sliding_window", "attention_window_size"), 16),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),  # wide enough for distributions far from uniform
    **dict.fromkeys(("attention_dropout", "dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "rotary_dim": 4,
    "ssm_state_size": 8,
    "kv_channels": 8,
    "word_embed_proj_dim": 32,
    "rope_head_dim": 8,
}
_LATENT = {"num_key_value_heads": 4, "head_dim": None, "qk_head_dim": None}  # its heads have no size of their own
_LAYERS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 32, "moe_top_k": 2, "hidden_size": 32},
        "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 1e4},
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "doge": {"is_moe": True},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "glm4_moe_lite": _LATENT,
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {
        **_LATENT, "head_dim": 8, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2,
    },
    "mamba2": {"head_dim": 16},
    "minicpm3": _LATENT,
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3, "w_init_variance_scale": 1.0},
    "xlstm": {"v_head_dim": None, "chunk_size": 64},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip


def tiny_model(
    model_type: str, seed: int = 0, dtype: torch.dtype = torch.float64, **overrides: Any
) -> PreTrainedModel:
    """
    A random causal language model for the tests' tokenizer, of two layers or so.

    A mixture of experts computes its experts one by one: the fused products take no float64.
    """
    cls = CONFIG_MAPPING[model_type]
    tokenizer = build_tokenizer()
    default = cls()
    sizes = {name: value for name, value in _SIZES.items() if hasattr(default, name) and name not in cls.attribute_map}
    sizes = {**sizes, **_LAYERS.get(model_type, {})}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 2}
    config = cls(vocab_size=len(tokenizer), **special, **{**sizes, **overrides})
    config._experts_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    assert sum(p.numel() for p in model.parameters()) < 10**6, f"give {model_type} its sizes"
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at the start, where dropping it would show nowhere
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()
