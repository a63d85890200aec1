# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The model that the built-in pair starts from before training, and what is done to weights beside it."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .tokenizer import VOCAB_SIZE


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """
    Create the untrained general model, of 3.4 million parameters.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer whose special tokens the configuration takes over.

    Returns:
        [`~transformers.LlamaForCausalLM`]: The model.
    """
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def blend(model: PreTrainedModel, other: Path, share: float) -> PreTrainedModel:
    """
    Average a model's weights with those of another one, in place.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        other (`pathlib.Path`):
            Folder of the other model.
        share (`float`):
            Weight of the first model.

    Returns:
        [`~transformers.PreTrainedModel`]: The averaged model.
    """
    others = dict(AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).named_parameters())
    for name, parameter in model.named_parameters():
        parameter.lerp_(others[name], 1.0 - share)
    return model
