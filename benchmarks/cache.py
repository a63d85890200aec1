# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What it costs to read a teacher's states from a cache, beside the training step that needs them.

    python benchmarks/cache.py                               # eight rows of 128 tokens, V = 50257, teacher of H = 768
    python benchmarks/cache.py --hidden 2304 --rows 4 --output cache.json

A round reads and collates a batch, from the data set alone and from a cache in bf16 that is built first, and times
the step that follows (forward, backward, AdamW), with the states at hand and with the teacher. The ratio is that of
reading the cache and taking the step to reading the tokens and taking the same step, which is the least there can be:
the student, both heads and the loss. Figures are medians over rounds, in one process. The student is that of
benchmarks/step.py.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table


def make_trainers(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A trainer with the teacher, and one with its cache."""
    from datasets import Dataset
    from transformers import LlamaConfig

    from trl_tempkd import KDConfig, TemperatureKDTrainer
    from trl_tempkd.teachers import CacheBuilder
    from trl_tempkd.tiny.tokenizer import train_tokenizer

    def make(layers: int, hidden: int) -> Any:
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=args.vocabulary,
                hidden_size=hidden,
                intermediate_size=hidden * 8 // 3,
                num_hidden_layers=layers,
                num_attention_heads=hidden // 32,
                num_key_value_heads=hidden // 32,
                max_position_embeddings=args.tokens,
                tie_word_embeddings=True,
                bos_token_id=None,
            )
        )

    make(6, args.hidden).save_pretrained(folder / "teacher")
    ids = torch.randint(2, args.vocabulary, (args.rows * args.rounds, args.tokens)).tolist()
    config = KDConfig(
        output_dir=str(folder / "out"),
        teacher_model_name_or_path=str(folder / "teacher"),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        max_length=args.tokens,
        per_device_train_batch_size=args.rows,
        logging_strategy="no",
        report_to="none",
    )
    kwargs = {
        "train_dataset": Dataset.from_dict({"input_ids": ids, "labels": ids}),
        "processing_class": train_tokenizer(iter(["a student and a teacher"])),
    }
    live = TemperatureKDTrainer(make(3, 192), args=config, **kwargs)
    parts = (live.teacher, live.data_collator, live.processing_class, live.accelerator, config)
    CacheBuilder(folder / "cache", {"train": live.train_dataset}, *parts).build()
    config.teacher_cache = str(folder / "cache")
    return {"teacher": live, "cache": TemperatureKDTrainer(make(3, 192), args=config, **kwargs)}


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Run the rounds. Returns medians."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = make_trainers(args, Path(folder))
        for trainer in trainers.values():
            trainer.create_optimizer()
            trainer.current_gradient_accumulation_steps = 1  # what `train` sets
        count = torch.tensor(args.rows * (args.tokens - 1))

        def read(name: str, number: int) -> dict[str, Any]:
            trainer = trainers[name]
            return trainer.data_collator(
                trainer.train_dataset.__getitems__(list(range(number * args.rows, (number + 1) * args.rows)))
            )

        def step(name: str, batch: dict[str, Any]) -> None:
            trainer = trainers[name]
            trainer.training_step(trainer.model, batch, count)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        def seconds(function: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
            start = time.perf_counter()
            result = function(*inputs)
            return time.perf_counter() - start, result

        rounds = []
        for i in track(range(args.rounds), "rounds", console=Console(stderr=True)):
            tokens, plain = seconds(read, "teacher", i)
            states, cached = seconds(read, "cache", i)
            rounds.append(
                {
                    "read_tokens": tokens,
                    "read_cache": states,
                    "step_with_teacher": seconds(step, "teacher", plain)[0],
                    "step": seconds(step, "cache", cached)[0],
                }
            )
    rounds = rounds[2:]  # the first ones compile, and make the optimizer's state
    figures = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    figures["ratio"] = statistics.median(
        (r["read_cache"] + r["step"]) / (r["read_tokens"] + r["step"]) for r in rounds
    )
    return figures


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=50257, metavar="V", help="default: 50257, as GPT-2's")
    parser.add_argument(
        "--hidden", type=int, default=768, metavar="H", help="teacher's, a multiple of 96 (default: 768)"
    )
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a row (default: 128)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch (default: 8)")
    parser.add_argument("--rounds", type=int, default=9, help="the first two aren't counted (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args = parser.parse_args(argv)
    if args.rounds < 3 or args.hidden % 96:
        parser.error("--rounds must be at least 3 and --hidden a multiple of 96")
    torch.set_num_threads(args.threads)

    figures = measure(args)
    table = Table("", title=f"{args.rows} x {args.tokens} tokens, V {args.vocabulary}, teacher's H {args.hidden}")
    table.add_column("ms", justify="right")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.3f}" if name == "ratio" else f"{1000 * value:.1f}")
    Console().print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"torch": torch.__version__, **figures}, indent=1))


if __name__ == "__main__":
    main()
