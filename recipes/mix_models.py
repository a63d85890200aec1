# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Write models between two of one architecture, by averaging their weights: the teachers of the dial of docs/results/.

```bash
python recipes/mix_models.py FIRST SECOND FOLDER 0 0.25 0.5 0.75 1
```

FIRST and SECOND are folders, best of two models fine-tuned from one: far from each other in weights, what is between
is no model. FOLDER gets `0`, `0.25`, ..., each named after the share of SECOND, with the tokenizer of FIRST.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_tempkd.tiny.architecture import blend


def mix(first: str, second: str, folder: str, shares: list[float]) -> list[Path]:
    """Write one model for each share of the second. Returns their folders."""
    written = []
    for share in shares:
        model = AutoModelForCausalLM.from_pretrained(second, dtype=torch.float32)
        path = Path(folder) / f"{share:g}"
        blend(model, Path(first), share).save_pretrained(path)
        AutoTokenizer.from_pretrained(first).save_pretrained(path)
        written.append(path)
    return written


if __name__ == "__main__":
    one, other, where, *between = sys.argv[1:]
    for path in mix(one, other, where, [float(share) for share in between]):
        print(path)
