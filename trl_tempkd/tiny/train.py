# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Train the built-in teacher and student from scratch on a CPU.

```bash
OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m trl_tempkd.tiny.train --output runs/tiny
```

For models this small, one process per core with one thread each beats one process with two threads; `python -m` in
place of `torchrun` works too, with the same batches. Three stages write to the output folder: `general` (pretraining),
`teacher` (fine-tuned from `general` on the rows to distil on, so that it is peaked there) and `student` (layers of
`general`, healed on general rows). Each stage resumes from its last checkpoint when the command is run again after an
interruption, and is skipped once it is complete. The models to ship, in bf16 and with their model cards, are written
to the folder `models`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from ..files import write_atomically
from ..fingerprint import fingerprint
from ..students import student_from_layers
from .architecture import blend, new_model
from .card import model_card
from .data import SPLITS, load_tiny_dataset
from .measure import MAX_LENGTH, MeasureCallback, measure
from .tokenizer import train_tokenizer


# Steps of each stage
GENERAL_STEPS, TEACHER_STEPS, SETTLE_STEPS, STUDENT_STEPS = 2600, 1500, 300, 200
BATCH_SIZE = 32
# The teacher's rows, called `mixed`: each row of `train` this often, and between them rows of `general`, 1.5 times as
# many as `train` has. On `train` alone the loss on held-out rows rises within the first epoch.
TRAIN_REPEATS, GENERAL_SHARE = 7, 1.5
# The teacher's weights are this share of the fine-tuned ones and the rest of the general ones (WiSE-FT, Wortsman et
# al. 2022): that wins back most of the loss on held-out rows for little on `train`.
TUNED_SHARE = 0.85
# Rows of `train` and `test` that are measured while a stage runs, and rows of `train` after it (`test` in full).
WATCHED_ROWS, FINAL_ROWS = 256, 1000
# Layers of the general model that the student keeps: the best of these in the loss before any training.
LAYER_CHOICES = ((0, 3), (0, 4), (0, 5))


class PlainSFTTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] with the model's own loss.

    TRL computes the loss in tiles of the vocabulary to save memory. On a CPU and with so small a vocabulary, the
    logits in full make a step faster.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["use_cache"] = False
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


def best_layers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> tuple[int, ...]:
    """
    Find out which layers make the better student before any training.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The general model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows ([`~datasets.Dataset`]):
            Rows to measure on.

    Returns:
        `tuple[int, ...]`: The one of `LAYER_CHOICES` with the lowest loss.
    """
    return min(LAYER_CHOICES, key=lambda layers: measure(student_from_layers(model, layers), tokenizer, rows)["loss"])


def run_stage(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: DatasetDict,
    train_split: str,
    steps: int,
    learning_rate: float,
    completion_only: bool,
    blended_with: Path | None = None,
) -> PreTrainedModel:
    """
    Train one stage, resuming from its last whole checkpoint if there is one.

    Args:
        folder (`pathlib.Path`):
            Folder of the stage.
        model ([`~transformers.PreTrainedModel`]):
            Model to begin with.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.DatasetDict`]):
            The built-in data set.
        train_split (`str`):
            Split to train on.
        steps (`int`):
            Optimizer steps.
        learning_rate (`float`):
            Highest learning rate; it is held after a warmup and decays to zero over the last third of the steps.
        completion_only (`bool`):
            Whether only the completions count in the loss.
        blended_with (`pathlib.Path`, *optional*):
            Folder of the model with which the trained one is averaged; the trained one has the weight `TUNED_SHARE`.

    Returns:
        [`~transformers.PreTrainedModel`]: The trained model, saved in `folder / "model"`.
    """
    done = folder / "figures.json"
    if done.is_file():
        return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    args = SFTConfig(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE // PartialState().num_processes,
        max_length=MAX_LENGTH,
        completion_only_loss=completion_only,
        train_sampling_strategy="group_by_length",
        learning_rate=learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": steps // 3, "decay_type": "linear"},
        warmup_steps=min(100, steps // 10),
        weight_decay=0.1,
        adam_beta2=0.98,
        optim="adamw_torch_fused",
        use_cpu=True,
        bf16=True,
        activation_checkpointing=False,
        logging_steps=min(50, steps),
        save_steps=250,
        save_total_limit=2,
        include_num_input_tokens_seen="all",
        seed=0,
        report_to="none",
    )
    watched = {split: dataset[split].take(WATCHED_ROWS) for split in ("train", "test")}
    trainer = PlainSFTTrainer(
        model=model,
        args=args,
        train_dataset=dataset[train_split],
        processing_class=tokenizer,
        callbacks=[MeasureCallback(folder / "measured.jsonl", tokenizer, watched, every=max(1, steps // 10))],
    )
    start = time.time()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    seconds = time.time() - start

    trainer.save_model(str(folder / "model"))
    if blended_with and PartialState().is_main_process:
        blend(trainer.model, blended_with, TUNED_SHARE).save_pretrained(folder / "model")
    PartialState().wait_for_everyone()
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    if not PartialState().is_main_process:
        return model
    rounded = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    final = {split: dataset[split].take(min(FINAL_ROWS, len(dataset[split]))) for split in watched}
    measured = [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines()]
    figures = {
        "split": train_split,
        "completion_only": completion_only,
        "tuned_share": TUNED_SHARE if blended_with else 1.0,
        "steps": steps,
        "fingerprints": {split: fingerprint(dataset[split]) for split in SPLITS},
        "batch_size": BATCH_SIZE,
        "watched_rows": WATCHED_ROWS,
        "final_rows": {split: len(rows) for split, rows in final.items()},
        "epochs": round(steps * BATCH_SIZE / len(dataset[train_split]), 1),
        "tokens": int(trainer.state.num_input_tokens_seen),
        # A stopped or shared machine and a resumed run make this no measure of speed, but it tells what to expect.
        "seconds_since_last_launch": round(seconds),
        "parameters": model.num_parameters(),
        "learning_rate": learning_rate,
        "losses": {entry["step"]: round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry},
        # A resumed run measures some steps again; the later figures count.
        "measured": sorted({entry["step"]: entry for entry in measured}.values(), key=lambda entry: entry["step"]),
        "final": {split: measure(model, tokenizer, rows) for split, rows in final.items()},
        "final_bf16": {split: measure(rounded, tokenizer, rows) for split, rows in final.items()},
    }
    write_atomically(done, json.dumps(figures, indent=2) + "\n")
    return model


def export(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str) -> None:
    """
    Write a model in bf16 with its tokenizer and its model card.

    Args:
        folder (`pathlib.Path`):
            Folder to write to.
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        card (`str`):
            Text of the model card.
    """
    model = model.to(torch.bfloat16)
    model.config.use_cache = True  # the trainer turns it off
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=128
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_atomically(folder / "README.md", card)


def last_checkpoint(folder: Path) -> str | None:
    """
    Find the last checkpoint that was written to its end.

    Args:
        folder (`pathlib.Path`):
            Output folder of the trainer.

    Returns:
        `str` or `None`: The checkpoint's folder.
    """
    # The trainer writes its state after everything else, so a checkpoint without it was cut off.
    states = sorted(
        folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.split("-")[1])
    )
    for path in reversed(states):
        try:
            json.loads(path.read_text())
        except ValueError:
            continue
        return str(path.parent)
    return None


def make_parser() -> argparse.ArgumentParser:
    """
    Make the command line's parser.

    Returns:
        `argparse.ArgumentParser`: The parser.
    """
    parser = argparse.ArgumentParser(description="Train the built-in teacher and student from scratch on a CPU.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for checkpoints, models and figures.")
    parser.add_argument("--general_steps", type=int, default=GENERAL_STEPS, help="Steps of the pretraining.")
    parser.add_argument("--teacher_steps", type=int, default=TEACHER_STEPS, help="Steps of the teacher's fine-tuning.")
    parser.add_argument("--settle_steps", type=int, default=SETTLE_STEPS, help="Steps of the teacher's last stage.")
    parser.add_argument("--student_steps", type=int, default=STUDENT_STEPS, help="Steps of the student's healing.")
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Train the tokenizer, the general model, the teacher and the student, and write them with their model cards.

    Args:
        args (`argparse.Namespace`):
            The parsed command line.
    """
    set_seed(0)
    tokenizer_folder = args.output / "tokenizer"
    with PartialState(cpu=True).main_process_first():
        dataset = load_tiny_dataset()
        if not (tokenizer_folder / "tokenizer_config.json").is_file():
            texts = (row[column] for row in dataset["general"] for column in ("prompt", "completion"))
            train_tokenizer(texts).save_pretrained(tokenizer_folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    general = run_stage(
        args.output / "general",
        new_model(tokenizer),
        tokenizer,
        dataset,
        train_split="general",
        steps=args.general_steps,
        learning_rate=2e-3,
        completion_only=False,
    )
    general_rows = dataset["general"]  # in no order but that of hashes, so the first ones are a sample
    count = int(GENERAL_SHARE * len(dataset["train"]))
    dataset["mixed"] = concatenate_datasets([dataset["train"]] * TRAIN_REPEATS + [general_rows.take(count)])
    # Half and half, and other general rows than before.
    dataset["halves"] = concatenate_datasets([dataset["train"], general_rows.skip(count).take(len(dataset["train"]))])
    layers = best_layers(general, tokenizer, general_rows.take(WATCHED_ROWS))
    smaller = student_from_layers(general, layers)
    teacher = run_stage(
        args.output / "teacher",
        general,
        tokenizer,
        dataset,
        train_split="mixed",
        steps=args.teacher_steps,
        learning_rate=1.5e-3,
        completion_only=True,
        blended_with=args.output / "general" / "model",
    )
    teacher = run_stage(
        args.output / "settle",
        teacher,
        tokenizer,
        dataset,
        train_split="halves",
        steps=args.settle_steps,
        learning_rate=5e-4,
        completion_only=True,
    )
    student = run_stage(
        args.output / "student",
        smaller,
        tokenizer,
        dataset,
        train_split="general",
        steps=args.student_steps,
        learning_rate=1e-3,
        completion_only=False,
    )
    if PartialState().is_main_process:
        stages = {
            stage: json.loads((args.output / stage / "figures.json").read_text())
            for stage in ("general", "teacher", "settle", "student")
        }
        stages["student"]["kept_layers"] = layers
        export(args.output / "models" / "teacher", teacher, tokenizer, model_card("teacher", stages))
        export(args.output / "models" / "student", student, tokenizer, model_card("student", stages))


if __name__ == "__main__":
    main(make_parser().parse_args())
