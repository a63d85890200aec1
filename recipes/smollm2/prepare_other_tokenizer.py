# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Write short instructions as conversations, and beside the reference answers those that a teacher has written.

```bash
python recipes/smollm2/prepare_other_tokenizer.py INSTRUCTIONS.jsonl FOLDER
trl-tempkd generate --teacher_model_name_or_path MODEL --dataset_name FOLDER/rows --output_dir FOLDER/written \\
    --max_new_tokens 64 --only_stopped
python recipes/smollm2/prepare_other_tokenizer.py INSTRUCTIONS.jsonl FOLDER
```

INSTRUCTIONS.jsonl has `instruction`, `input` and `output` (as rasbt/LLMs-from-scratch's instruction data). FOLDER gets
`rows`, with the splits `train` and `test`; and at the second call `data`, with `written`, the answers that the teacher
has ended itself; `train`, the references to the same questions; and `test`, other questions with references.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset, DatasetDict


HELD_OUT = 200


def prepare(rows: list[dict[str, str]], seed: int = 1) -> DatasetDict:
    """The rows as conversations, the first of each question, in the splits `train` and `test`."""
    answers: dict[str, str] = {}
    for row in rows:
        answers.setdefault("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"])
    found = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer in answers.items()
    ]
    return Dataset.from_list(found).train_test_split(test_size=HELD_OUT, seed=seed)


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def main(instructions: Path, folder: Path) -> None:
    splits = prepare(read(instructions))
    written = folder / "written" / "train.jsonl"
    if not written.is_file():
        splits.save_to_disk(folder / "rows")
        print(f"Saved {folder / 'rows'}: {len(splits['train'])} rows of train, {HELD_OUT} of test.")
        return
    answered = read(written)
    splits["train"] = splits["train"].select([row["row"] for row in answered])
    splits["written"] = Dataset.from_list([{name: row[name] for name in ("prompt", "completion")} for row in answered])
    splits.save_to_disk(folder / "data")
    counts = ", ".join(f"{len(rows)} rows of {name}" for name, rows in splits.items())
    print(f"Saved {folder / 'data'}: {counts}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
