# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Write databricks-dolly-15k as prompt and completion, in the prompt format of MiniLLM, with 500 rows held out.

```bash
python recipes/gpt2_dolly/prepare_data.py [FOLDER]
python recipes/gpt2_dolly/prepare_data.py [FOLDER] --evaluation
```

Rows whose prompt has more than 256 tokens of GPT-2 are left out, as in MiniLLM. With `--evaluation`, MiniLLM's other
four test sets are written beside FOLDER: `self_instruct.jsonl`, `vicuna.jsonl`, `super_natural.jsonl` and
`unnatural.jsonl`. Of the latter two, it takes the instructions whose answers have eleven words or more.
"""

import sys
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase


MAX_PROMPT_LENGTH = 256  # tokens
# Name here -> file on the Hub
TEST_SETS = {
    "self_instruct": "hf://datasets/MiniLLM/self-inst/valid.jsonl",
    "vicuna": "hf://datasets/MiniLLM/Vicuna/valid.jsonl",
    "super_natural": "hf://datasets/MiniLLM/sinst/11_/valid.jsonl",
    "unnatural": "hf://datasets/MiniLLM/uinst/11_/valid.jsonl",
}

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PROMPT_WITH_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
)


def to_prompt_completion(row: dict[str, str]) -> dict[str, str]:
    """One row of Dolly (`instruction`, `context`, `response`) as TRL's prompt-completion format."""
    template = PROMPT_WITH_CONTEXT if row["context"] else PROMPT
    return {"prompt": template.format(**row), "completion": row["response"]}


def prepare(dolly: Dataset, tokenizer: PreTrainedTokenizerBase, test_size: int = 500, seed: int = 42) -> DatasetDict:
    """Dolly as the splits `train` and `test`, without rows whose prompt is long."""
    rows = dolly.map(to_prompt_completion, remove_columns=dolly.column_names)
    rows = rows.filter(lambda row: len(tokenizer(row["prompt"])["input_ids"]) <= MAX_PROMPT_LENGTH)
    return rows.train_test_split(test_size=test_size, seed=seed)


def prepare_test_set(rows: Dataset) -> Dataset:
    """The columns `instruction`, `input` and `output`, which `trl-tempkd evaluate` puts into the same prompt."""
    return rows.select_columns(["instruction", "input", "output"])


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--evaluation"]
    folder = Path(arguments[0] if arguments else "outputs/data/dolly")
    gpt2 = AutoTokenizer.from_pretrained("openai-community/gpt2")
    prepare(load_dataset("databricks/databricks-dolly-15k", split="train"), gpt2).save_to_disk(folder)
    print(f"Saved to {folder}.")
    for name, file in TEST_SETS.items() if "--evaluation" in sys.argv else ():
        prepare_test_set(load_dataset("json", data_files=file, split="train")).to_json(folder.parent / f"{name}.jsonl")
        print(f"Saved to {folder.parent / name}.jsonl.")
