# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Small tokenizers of each kind, trained here."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from made_models import SENTENCES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from trl_tempkd.vocabularies.spelling import PROBES


SPECIAL = ["<unk>", "<pad>", "<eos>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _texts(seed: int) -> list[str]:
    """What to learn from; another seed cuts words in another way."""
    return [*PROBES, *(SENTENCES if not seed else [s[::-1] + " " + s for s in SENTENCES])]


def _fast(tokenizer: Tokenizer | str) -> PreTrainedTokenizerFast:
    made = Tokenizer.from_str(tokenizer) if isinstance(tokenizer, str) else tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", bos_token="<eos>"
    )


def byte_level(
    seed: int = 0, normalizer: normalizers.Normalizer | None = None, prefix: bool = False
) -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400 + 80 * seed, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    return _fast(tokenizer)


def metaspace(seed: int = 0, prefix: bool = True) -> PreTrainedTokenizerFast:
    """BPE with byte fallback, as Llama 2, Mistral and Gemma have it: without a pre-tokenizer, the prefix a choice."""
    return _fast(_metaspace(seed, prefix))


@cache
def _metaspace(seed: int, prefix: bool) -> str:
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    learnt.train_from_iterator(
        _texts(seed),
        trainers.BpeTrainer(vocab_size=220 + 200 * seed, special_tokens=SPECIAL, show_progress=False),
    )
    state = json.loads(learnt.to_str())["model"]
    # Scripts of which it has no pieces are bytes to it
    pieces = [piece for piece in state["vocab"] if piece in SPECIAL or all(ord(c) < 128 or c == "▁" for c in piece)]
    vocab = {piece: i for i, piece in enumerate([*SPECIAL, *BYTES, *(p for p in pieces if p not in SPECIAL)])}
    merges = [tuple(pair) for pair in state["merges"] if "".join(pair) in vocab and {*pair} <= {*vocab}]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer.to_str()


def unigram(seed: int = 0, prefix: bool = True) -> PreTrainedTokenizerFast:
    """As SentencePiece's Unigram with a metaspace."""
    return _fast(_unigram(seed, prefix))


@cache
def _unigram(seed: int, prefix: bool) -> str:
    tokenizer = Tokenizer(models.Unigram())
    scheme = "always" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    texts = [text for text in _texts(seed) if "🙂" not in text]
    tokenizer.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    return tokenizer.to_str()


def word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    return _fast(tokenizer)


CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\nA:"
    "{% else %} {{ m['content'] }}<eos>{% endif %}{% endfor %}"
)


def save_pair_of_two(
    folder: Path,
    make_model: Callable[..., PreTrainedModel],
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    padding: int = 3,
    **overrides: Any,
) -> tuple[str, str]:
    """Folders with a student and a teacher of other weights, size and tokenizer, the teacher's head with padding."""
    for seed, (name, tokenizer) in enumerate((("student", student), ("teacher", teacher))):
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        size = {"vocab_size": len(tokenizer) + padding * seed, "max_position_embeddings": 256}
        make_model("llama", seed=seed, **ids, **size, **overrides).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "student"), str(folder / "teacher")


ROWS = [
    {"prompt": "the cat sat on", "completion": " the mat and looked at the moon"},
    {"prompt": "what is the capital", "completion": " of the moon? 語 🙂 there is none"},
    {"prompt": "a dog ran", "completion": " after the cat"},
    {"prompt": "warm logits", "completion": " carry more than the top choice"},
]
TEXT = datasets.Dataset.from_list(ROWS)
TAGS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHATS = datasets.Dataset.from_list(
    [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"].strip()}],
        }
        for row in ROWS
    ]
)


def with_chat(tokenizer, template=CHAT):
    tokenizer.chat_template = template
    return tokenizer
