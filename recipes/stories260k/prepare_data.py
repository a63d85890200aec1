# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Sample stories from stories260k, a Llama of 260,032 parameters trained on TinyStories (karpathy/tinyllamas, MIT), and
copy two of its five layers as the student.

```bash
python recipes/stories260k/prepare_data.py MODEL [FOLDER]
```

MODEL is the model as a Hugging Face folder. FOLDER gets `data`, with the splits `train` and `test`, `teacher` and
`student`.
"""

import sys

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_tempkd import student_from_layers
from trl_tempkd.study.evaluation import sample


WORDS = 8  # of the beginning of a story, which are the prompt
LAYERS = (0, 4)


def sample_stories(model, tokenizer, count: int, seed: int = 1) -> DatasetDict:
    """Stories of up to 160 tokens: their first words as the prompt, the rest as the completion; 300 held out."""
    stories = sample(model, tokenizer, [[tokenizer.bos_token_id]] * count, max_new_tokens=160, seed=seed)
    rows = []
    for story in stories:
        words = story.text.strip().split(" ")
        if len(words) > 2 * WORDS:
            rows.append({"prompt": " ".join(words[:WORDS]), "completion": " " + " ".join(words[WORDS:])})
    return Dataset.from_list(rows).train_test_split(test_size=300, seed=seed)


if __name__ == "__main__":
    folder = sys.argv[2] if len(sys.argv) > 2 else "outputs/stories260k"
    teacher = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    teacher_tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    sample_stories(teacher, teacher_tokenizer, 3300).save_to_disk(f"{folder}/data")
    student_from_layers(teacher, LAYERS).save_pretrained(f"{folder}/student")
    teacher.save_pretrained(f"{folder}/teacher")
    for name in ("teacher", "student"):
        teacher_tokenizer.save_pretrained(f"{folder}/{name}")
    print(f"Saved to {folder}.")
