# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Give each row of the built-in data one of two teachers, by the length of its prompt.

```bash
python recipes/tiny/prepare_teachers.py [FOLDER]
```

FOLDER, `outputs/tiny-teachers` by default, gets the splits `train` and `test`, whose rows have a column `teacher`.
"""

import sys

from trl_tempkd.tiny import load_tiny_dataset


LENGTH = 84  # characters of a prompt from which on a row belongs to the second teacher


def routed(row: dict) -> dict:
    return {"teacher": "long" if len(row["prompt"]) >= LENGTH else "short"}


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "outputs/tiny-teachers"
    dataset = load_tiny_dataset().map(routed)
    dataset.save_to_disk(folder)
    count = list(dataset["train"]["teacher"]).count("long")
    print(f"{folder}: of {len(dataset['train'])} rows of train {count} have the teacher 'long'.")
