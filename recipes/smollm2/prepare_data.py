# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Copy layers of SmolLM2-135M-Instruct as a student, and write instructions and GSM8K's questions as conversations.

```bash
python recipes/smollm2/prepare_data.py MODEL INSTRUCTIONS.jsonl GSM8K.jsonl SELF_INSTRUCT.jsonl [FOLDER]
```

MODEL is a folder or HuggingFaceTB/SmolLM2-135M-Instruct. INSTRUCTIONS.jsonl has `instruction`, `input` and `output`
(as rasbt/LLMs-from-scratch's instruction data), and so has SELF_INSTRUCT.jsonl (yizhongw/self-instruct's user-oriented
evaluation); GSM8K.jsonl has `question` and `answer` (openai/grade-school-math). FOLDER gets `layers`, the student;
`data`, with rows of the first two in `train`, 100 instructions and 28 questions in `test`; and `self_instruct.jsonl`,
of which the first 64 are to be scored.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from trl_tempkd import student_from_layers


LAYERS = (0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 29)  # 12 of 30
QUESTIONS = 1500  # of GSM8K's, the first
SELF_INSTRUCT = 64


def conversation(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """One exchange in TRL's conversational prompt-completion format."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def instruction(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    return conversation("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"])


def prepare(instructions: list[dict[str, str]], questions: list[dict[str, str]], seed: int = 1) -> DatasetDict:
    """Both sources as the splits `train` and `test`."""
    asked = [instruction(row) for row in instructions]
    solved = [conversation(row["question"], row["answer"]) for row in questions]
    splits = [
        Dataset.from_list(rows).train_test_split(test_size=count, seed=seed)
        for rows, count in ((asked, 100), (solved, 28))
    ]
    return DatasetDict(
        {name: Dataset.from_list([row for split in splits for row in split[name]]) for name in ("train", "test")}
    )


def read(path: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


if __name__ == "__main__":
    model_name, instructions_path, questions_path, evaluation_path, *rest = sys.argv[1:]
    folder = rest[0] if rest else "outputs/smollm2-study"
    prepare(read(instructions_path), read(questions_path)[:QUESTIONS]).save_to_disk(f"{folder}/data")
    held_out = [instruction(row) for row in read(evaluation_path)[:SELF_INSTRUCT]]
    Dataset.from_list(held_out).to_json(f"{folder}/self_instruct.jsonl")
    student_from_layers(model_name, LAYERS, dtype=torch.float32).save_pretrained(f"{folder}/layers")
    AutoTokenizer.from_pretrained(model_name).save_pretrained(f"{folder}/layers")
    print(f"Saved to {folder}.")
