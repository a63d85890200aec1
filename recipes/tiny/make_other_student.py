# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Make an untrained student whose tokenizer isn't that of the built-in teacher: BPE with a metaspace and byte fallback,
as SentencePiece has it, of half the size.

```bash
python recipes/tiny/make_other_student.py outputs/other-student
```
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from trl_tempkd.tiny import load_tiny_dataset, resolve
from trl_tempkd.tiny.tokenizer import CHAT_TEMPLATE


VOCAB_SIZE = 2048
PAD, EOS = "<pad>", "</s>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Learn the merges from words with a metaspace in front, and use them with bytes for what no piece covers."""
    lines = pre_tokenizers.Split("\n", "isolated")  # no token runs on from a prompt into its answer
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="never")])
    learnt.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=[PAD, EOS, *BYTES], show_progress=False)
    )
    state = json.loads(learnt.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    tokenizer = Tokenizer(models.BPE(state["vocab"], merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = lines
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def main(folder: str) -> None:
    rows = load_tiny_dataset()["train"]
    tokenizer = make_tokenizer([row["prompt"] + row["completion"] for row in rows])
    torch.manual_seed(0)
    own = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    own |= {"vocab_size": len(tokenizer), "num_hidden_layers": 3, "dtype": "float32"}
    config = AutoConfig.from_pretrained(resolve("tiny:student"), **own)  # all else as the built-in one
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: an untrained student with a vocabulary of {len(tokenizer)}")


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(sys.argv[1])
