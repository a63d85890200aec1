# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What another tokenizer costs: a training step with a teacher that has one, over the same step with the student's own.

    python benchmarks/other_tokenizer.py                       # eight rows of 128 tokens, V = 50257
    python benchmarks/other_tokenizer.py --alignments bytes bytes+alm --output other_tokenizer.json

A step collates its batch, in which the completions are read in the teacher's tokens, and then is forward, backward and
AdamW. Rows are the built-in data set's, laid end to end to the length asked for. Both tokenizers are trained on it to
the same size, byte-level and with a metaspace, and the heads of both models are padded to the vocabulary.

All run in one process, interleaved; figures are medians over rounds, of ratios within a round. With one thread the
seconds are those of the processor, in which other work on the machine hardly shows; with more, those of the clock.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table


sys.path.insert(0, str(Path(__file__).parent.parent / "recipes" / "tiny"))

TAU = 2.0
SAME = "own tokenizer"
ALM = "+alm"  # behind a name: with the term on what is cut differently
ALIGNMENTS = ("bytes", "shared", "uld", f"bytes{ALM}", f"shared{ALM}", f"uld{ALM}")
ALM_WEIGHT = 0.3
TOKENS = 2048  # of each tokenizer


def byte_level(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_model(args: argparse.Namespace, layers: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=args.hidden // 32,
        num_key_value_heads=args.hidden // 32,
        max_position_embeddings=4 * args.tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).to(getattr(torch, args.dtype))


def make_rows(args: argparse.Namespace, texts: list[dict[str, str]], tokenizer: Any) -> list[dict[str, str]]:
    """Rows that are longer than a row of the batch, which is then cut."""
    rows, stock = [], iter(texts)
    for _ in range(args.rows):
        first = next(stock)
        completion = first["completion"]
        while len(tokenizer(first["prompt"] + completion)["input_ids"]) < args.tokens:
            completion += "\n" + next(stock)["completion"]
        rows.append({"prompt": first["prompt"], "completion": completion})
    return rows


def make_steps(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Callable[[], None]], dict[str, float]]:
    """Each contender's step, and how many tokens the teacher reads for each of the student's."""
    from datasets import Dataset
    from make_other_student import make_tokenizer

    from trl_tempkd import KDConfig, TemperatureKDTrainer
    from trl_tempkd.row_formats import TEACHER_QUESTION
    from trl_tempkd.tiny import load_tiny_dataset

    data = list(load_tiny_dataset()["train"])
    texts = [row["prompt"] + row["completion"] for row in data]
    own, other = byte_level(texts), make_tokenizer(texts)
    teacher = make_model(args, 6)
    for name, tokenizer in ((SAME, own), ("other", other)):
        teacher.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = make_rows(args, data, own)
    steps, read = {}, {}
    for name in (SAME, *args.alignments):
        alignment = name.removesuffix(ALM)
        config = KDConfig(
            str(folder / "out"),
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            gradient_checkpointing=False,
            max_length=args.tokens,
            per_device_train_batch_size=args.rows,
            optim="adamw_torch_fused",
            logging_strategy="no",
            report_to="none",
            kd_temperature=TAU,
            kd_ratio=args.kd_ratio,
            divergence="tvd" if alignment == "uld" else "forward_kl",
            vocabulary_alignment=None if name == SAME else alignment,
            alm_weight=ALM_WEIGHT if name.endswith(ALM) else 0.0,
            teacher_model_name_or_path=str(folder / (SAME if name == SAME else "other")),
        )
        dataset = Dataset.from_list(rows)
        trainer = TemperatureKDTrainer(make_model(args, 3), args=config, train_dataset=dataset, processing_class=own)
        examples = list(trainer.train_dataset)
        steps[name] = make_step(trainer, examples)
        batch = trainer.data_collator([dict(row) for row in examples])
        if TEACHER_QUESTION in batch:
            alignments = batch[TEACHER_QUESTION].alignments
            read[name] = sum(len(a.teacher_ids) for a in alignments) / batch["input_ids"].numel()
            read[f"{name} aligned"] = sum(len(a.student) for a in alignments) / int((batch["labels"] != -100).sum())
    return steps, read


def make_step(trainer: Any, examples: list[dict[str, Any]]) -> Callable[[], None]:
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # what `train` sets
    names = {*trainer.teacher.columns, "input_ids", "labels"}
    kept = [{name: value for name, value in row.items() if name in names} for row in examples]

    def step() -> None:
        batch = trainer.data_collator([dict(row) for row in kept])
        count = (batch["labels"][:, 1:] != -100).sum()
        trainer.training_step(trainer.model, batch, count)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None], threads: int) -> float:
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    step()
    return clock() - start


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the rounds. Returns a row per contender."""
    with tempfile.TemporaryDirectory() as folder:
        steps, read = make_steps(args, Path(folder))
        for step in steps.values():  # compiles, and makes the optimizer's state
            step()
        rounds = [
            {name: seconds(step, args.threads) for name, step in steps.items()}
            for _ in track(range(args.rounds), f"{args.dtype} rounds", console=Console(stderr=True))
        ]
    return [
        {
            "name": name,
            "seconds": statistics.median(r[name] for r in rounds),
            "ratio": statistics.median(r[name] / r[SAME] for r in rounds),
            "teacher_tokens_per_token": read.get(name, 1.0),
            "aligned_share": read.get(f"{name} aligned", 1.0),
        }
        for name in steps
    ]


def show(rows: list[dict[str, Any]], args: argparse.Namespace) -> Table:
    title = f"{args.rows} x {args.tokens} tokens, V {args.vocabulary}, H {args.hidden}, {args.dtype}"
    table = Table("teacher", title=title)
    for column in ("s / step", "ratio", "teacher's tokens", "aligned"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row["seconds"], row["ratio"], row["teacher_tokens_per_token"], row["aligned_share"])
        table.add_row(row["name"], *(f"{number:.2f}" for number in numbers))
    return table


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of weights and matmuls")
    parser.add_argument("--alignments", nargs="+", default=["bytes", "shared"], choices=ALIGNMENTS)
    parser.add_argument("--vocabulary", type=int, default=50257, metavar="V", help="default: 50257, as GPT-2's")
    parser.add_argument("--hidden", type=int, default=192, metavar="H", help="a multiple of 96 (default: 192)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a row (default: 128)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch (default: 8)")
    parser.add_argument("--kd_ratio", type=float, default=0.5, help="share of the divergence (default: 0.5)")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each contender (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in ("vocabulary", "hidden", "tokens", "rows", "rounds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.hidden % 96:
        parser.error(f"--hidden must be a multiple of 96, got {args.hidden}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(args.threads)
    rows = measure(args)
    Console().print(show(rows, args))
    if args.output:
        about = {
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            **{key: value for key, value in vars(args).items() if key != "output"},
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({**about, "results": rows}, indent=1))


if __name__ == "__main__":
    main()
