# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Give the built-in data a hint for the teacher: the first words of the answer, before the prompt.

```bash
python recipes/tiny/prepare_hints.py [FOLDER]
```

FOLDER, `outputs/tiny-hints` by default, gets the splits `train` and `test`. Their rows have `prompt`, `completion` and
`teacher_prompt`, which the teacher reads in the place of the prompt.
"""

import sys

from trl_tempkd.tiny import load_tiny_dataset


WORDS = 6  # of the answer, which the teacher is told


def hinted(row: dict) -> dict:
    hint = " ".join(row["completion"].split()[:WORDS])
    return {"teacher_prompt": f"# {hint} ...\n{row['prompt']}"}


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "outputs/tiny-hints"
    dataset = load_tiny_dataset().map(hinted)
    dataset.save_to_disk(folder)
    print(f"{', '.join(f'{len(rows)} rows of {name}' for name, rows in dataset.items())} in {folder}")
