# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Write some of the rows to distil on, to score students on them too: a small student learns these first, and greedy
decoding there has room between the start and the teacher.

```bash
python recipes/seen_rows.py DATASET FILE.jsonl [COUNT]
```

DATASET is `tiny`, the built-in one, or a folder with a split `train`. The rows are a sample of it, the same
everywhere.
"""

import sys

from datasets import Dataset, load_from_disk

from trl_tempkd.fingerprint import by_hash, fingerprint
from trl_tempkd.tiny import load_tiny_dataset


def seen_rows(name: str, count: int = 128) -> Dataset:
    rows = (load_tiny_dataset() if name == "tiny" else load_from_disk(name))["train"]
    return rows.select(by_hash(rows)).take(count)


if __name__ == "__main__":
    source, path, *rest = sys.argv[1:]
    sample = seen_rows(source, *map(int, rest))
    sample.to_json(path)
    print(f"{path}: {len(sample)} rows with the fingerprint {fingerprint(sample)}.")
