# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Take few of the stories, so that a teacher as small as stories260k can learn them by heart: one end of its dial.

```bash
python recipes/stories260k/prepare_dial.py [FOLDER]
```

FOLDER, `outputs/stories260k` by default, is what `prepare_data.py` has written. It gets `few`, with 256 rows in
`train` and the same `test`.
"""

import sys

from datasets import DatasetDict, load_from_disk

from trl_tempkd.fingerprint import by_hash


ROWS = 256


def few(data: DatasetDict, count: int = ROWS) -> DatasetDict:
    rows = data["train"]
    return DatasetDict(train=rows.select(by_hash(rows)[:count]), test=data["test"])


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "outputs/stories260k"
    few(load_from_disk(f"{folder}/data")).save_to_disk(f"{folder}/few")
    print(f"Saved to {folder}/few.")
