# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Write a model of another's architecture with random weights, and its tokenizer: a student that starts from nothing.

```bash
python recipes/random_model.py tiny:student FOLDER [SEED]
```
"""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from trl_tempkd.models import resolve_model


def random_model(name: str, folder: str, seed: int = 0) -> None:
    path = resolve_model(name, "MODEL")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)


if __name__ == "__main__":
    model_name, where, *rest = sys.argv[1:]
    random_model(model_name, where, *map(int, rest))
    print(where)
