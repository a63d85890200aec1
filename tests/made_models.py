# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Tiny random models and their tokenizer, made here: the tests need no network and no download."""

from functools import cache

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


SENTENCES = [
    "the cat sat on the mat and looked at the moon",
    "a teacher gives soft targets to a student",
    "warm logits carry more than the top choice",
    "what is the capital of the moon",
    "there is none but the cat said cheese",
    "temperature divides the logits before the softmax",
    "a dog ran after the cat",
    "the student learns what the teacher knows",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{% generation %} {{ message['content'] }}<eos>{% endgeneration %}"
    "{% else %} {{ message['content'] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # wide enough for distributions that are far from uniform
    "head_dim": 8,
}
_MOE = {**_SMALL, "num_experts_per_tok": 2}

# One of each way of turning the last hidden state into logits
ARCHITECTURES = {
    "llama": _SMALL,
    "qwen3": {**_SMALL, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3},
    # project_in and project_out: the head is narrower than the layers
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
        "init_std": 0.3,
        "dropout": 0.0,
    },
    "phi": {k: v for k, v in _SMALL.items() if k != "head_dim"},  # a bias in the head
    "gemma3_text": {**_SMALL, "final_logit_softcapping": 2.0, "sliding_window": 16},
    "granite": {**_SMALL, "logits_scaling": 4.0},
    "cohere": {**_SMALL, "logit_scale": 0.5},
    "falcon_h1": {
        **_SMALL,
        "lm_head_multiplier": 0.25,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "mixtral": {**_MOE, "num_local_experts": 4},
    "qwen3_moe": {**_MOE, "num_experts": 4, "moe_intermediate_size": 16, "decoder_sparse_step": 1},
}


@cache
def _tokenizer_state() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "<pad>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(vocab_size=192, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE tokenizer with a chat template that marks the assistant's turns."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_state()),
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(architecture: str = "llama", seed: int = 0, **overrides) -> PreTrainedModel:
    """A random causal language model for that tokenizer."""
    tokenizer = build_tokenizer()
    kwargs = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        **ARCHITECTURES[architecture],
        **overrides,
    }
    torch.default_generator.manual_seed(seed)  # of the CPU alone: for other devices torch would keep the stack
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**kwargs), dtype=torch.float32)
    # Biases start at zero, where dropping them would show nowhere
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    if torch.get_default_dtype() == torch.float64:  # by the fixture of this name
        model.double()
        if "num_experts_per_tok" in kwargs:
            model.set_experts_implementation("eager")  # the grouped matmuls aren't there in float64
    return model
