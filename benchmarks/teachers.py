# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What a teacher costs: a training step with the teacher beside the student, from each kind of cache, and without any.

    python benchmarks/teachers.py                            # eight rows of 128 tokens, V = 50257, teacher of H = 768
    python benchmarks/teachers.py --dtype bfloat16 --hidden 2304 --rows 4 --output teachers.json

A step reads and collates its batch, and then is forward, backward and AdamW. `no teacher` is the student alone:
the same trainer and chunks, with the arithmetic of cross-entropy and nothing else between the matmuls. `SFT` is TRL's
SFTTrainer on the same rows. `served` asks a server of last hidden states in another process, which has computed them
before: its step asks about the next batch, trains, and waits for the answers. Last a step is divided by the least that
its source can cost: the student alone, for hidden states together with the product of the teacher's head, which is
timed in the same round.

All run in one process, interleaved; figures are medians over rounds, of ratios within a round. The student is that of
benchmarks/step.py. The caches are built first: bytes are those of a token in its shard, without the tokens themselves.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from server import running
from torch import Tensor

from trl_tempkd.teachers import Teacher


TAU = 2.0
MODES = ("hidden", "topk", "sampled")


class NoTeacher(Teacher):
    """Nothing to multiply: a stand-in for the student alone, whose loss reads nothing of it."""

    metrics = ()

    def __init__(self, size: int):
        self.size = size

    def rows(self, inputs: dict[str, Any]) -> Any:
        from trl_tempkd.losses import TopK

        zeros = torch.zeros(inputs["input_ids"].numel(), 1)
        return TopK((TAU,), self.size, zeros.long(), zeros, zeros)


def cross_entropy_block(
    spec: Any, products: tuple[Tensor, ...], per_row: tuple[Tensor, ...], tables: Any
) -> dict[str, Tensor]:
    """In the place of the engine's `compute_block`: cross-entropy at tau 1, and nothing else."""
    (student_RV, *_), (target_R, _, _, weight_R, *_) = products, per_row
    log_q_RV = student_RV.float().log_softmax(-1)
    loss_R = -log_q_RV.gather(-1, target_R.unsqueeze(-1)).squeeze(-1)
    is_target_RV = torch.arange(log_q_RV.shape[-1]) == target_R.unsqueeze(-1)
    student_RV.copy_((log_q_RV.exp() - is_target_RV.float()) * weight_R.unsqueeze(-1))
    return {"loss": loss_R * weight_R, "scaled": loss_R}


def make_model(args: argparse.Namespace, layers: int, hidden: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(layers)
    config = LlamaConfig(
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
    return LlamaForCausalLM(config).to(getattr(torch, args.dtype))


def make_trainers(
    args: argparse.Namespace, folder: Path, clock: Callable[[], float], servers: ExitStack
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The contenders, name to trainer, and what building each cache took."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from trl_tempkd import KDConfig, TemperatureKDTrainer
    from trl_tempkd.teachers import CacheBuilder
    from trl_tempkd.tiny.tokenizer import train_tokenizer

    teacher, tokenizer = str(folder / "teacher"), train_tokenizer(iter(["a student and a teacher"]))
    make_model(args, 6, args.hidden).save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    ids = torch.randint(2, args.vocabulary, (args.rows * args.rounds, args.tokens)).tolist()
    shared: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "bf16": False,  # the weights have the dtype
        "activation_checkpointing": False,
        "gradient_checkpointing": False,
        "max_length": args.tokens,
        "per_device_train_batch_size": args.rows,
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    kwargs = {
        "train_dataset": Dataset.from_dict({"input_ids": ids, "labels": ids}),
        "processing_class": tokenizer,
    }

    def make(**fields: Any) -> Any:
        config = KDConfig(**shared, teacher_model_name_or_path=teacher, kd_temperature=TAU, **fields)
        return TemperatureKDTrainer(make_model(args, 3, 192), args=config, **kwargs)

    live, built = make(), []
    trainers = {"live": live}
    parts = (live.teacher, live.data_collator, live.processing_class, live.accelerator, live.args)
    for mode in MODES:
        builder = CacheBuilder(
            folder / mode, {"train": live.train_dataset}, *parts,
            mode=mode, dtype=args.dtype, count=args.count, taus=args.taus, batch_size=args.rows,
        )  # fmt: skip
        start = clock()
        manifest = builder.build()
        tokens = manifest.splits["train"]["tokens"]
        built.append(
            {
                "name": mode,
                "bytes_per_token": builder.layout.size,
                "files_per_token": sum(file.stat().st_size for file in (folder / mode).rglob("*.arrow")) / tokens,
                "build_tokens_per_second": tokens / (clock() - start),
            }
        )
        trainers[mode] = make(teacher_cache=str(folder / mode))
    trainers["served"] = make(teacher_server_url=servers.enter_context(running(teacher, "--remember")))
    start, served = clock(), trainers["served"]
    parts = (served.teacher, served.data_collator, served.processing_class, served.accelerator, served.args)
    how = {"dtype": args.dtype, "batch_size": args.rows}
    CacheBuilder(folder / "served", {"train": served.train_dataset}, *parts, **how).build()
    size = args.hidden * getattr(torch, args.dtype).itemsize * (args.tokens + len(served.teacher.served.mark))
    built.append(
        {
            "name": "served",
            "bytes_per_token": size / args.tokens,
            "build_tokens_per_second": args.rows * args.rounds * (args.tokens - 1) / (clock() - start),
        }
    )
    trainers["no teacher"] = make(kd_ratio=0.0, teacher_cache=str(folder / "topk"))
    trainers["no teacher"].teacher = NoTeacher(args.vocabulary)
    trainers["no teacher"].data_collator = live.data_collator
    trainers["no teacher"].train_dataset = live.train_dataset
    trainers["SFT"] = SFTTrainer(make_model(args, 3, 192), args=SFTConfig(**shared), **kwargs)
    return trainers, built


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the rounds. Returns a row for each contender."""
    clock = time.process_time if args.cpu_time else time.perf_counter

    def seconds(function: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
        start = clock()
        result = function(*inputs)
        return clock() - start, result

    from trl_tempkd.losses import block

    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        trainers, built = make_trainers(args, Path(folder), clock, servers)
        for trainer in trainers.values():
            trainer.create_optimizer()
            trainer.current_gradient_accumulation_steps = 1  # what `train` sets
        count = args.rows * (args.tokens - 1)

        def read(trainer: Any, number: int) -> dict[str, Any]:
            rows = list(range(number * args.rows, (number + 1) * args.rows))
            return trainer.data_collator(trainer.train_dataset.__getitems__(rows))

        def asked(number: int) -> dict[str, Any]:
            batch = read(trainers["served"], number % args.rounds)
            trainers["served"].teacher.ask([batch])
            return batch

        def served_step(batch: dict[str, Any], number: int) -> dict[str, Any]:
            """A step on a batch that is answered, and the next one, answered too."""
            following = asked(number + 1)
            step(trainers["served"], batch)
            for _, requests in following["teacher_requests"].items:
                requests[0].result()
            return following

        def step(trainer: Any, batch: dict[str, Any]) -> None:
            alone = isinstance(getattr(trainer, "teacher", None), NoTeacher)
            with mock.patch.object(block, "compute_block", cross_entropy_block) if alone else nullcontext():
                trainer.training_step(trainer.model, batch, torch.tensor(count))
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        dtype = getattr(torch, args.dtype)
        hidden, weight = torch.randn(count, args.hidden).to(dtype), torch.randn(args.vocabulary, args.hidden).to(dtype)
        logits = hidden.new_empty(count, args.vocabulary)
        rounds, following = [], asked(0)
        for i in track(range(args.rounds), f"{args.dtype} rounds", console=Console(stderr=True)):
            times = {"head": seconds(lambda: torch.mm(hidden, weight.T, out=logits))[0]}
            for name, trainer in trainers.items():
                if name == "served":
                    times[name], following = seconds(served_step, following, i)
                    times["read served"] = 0.0  # a part of it
                    continue
                reading, batch = seconds(read, trainer, i)
                times[f"read {name}"] = reading
                times[name] = reading + seconds(step, trainer, batch)[0]
            rounds.append(times)
    rounds = rounds[2:]  # the first ones compile, and make the optimizer's state

    def median(value: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(value, rounds))

    def row(name: str) -> dict[str, Any]:
        least = {"live": None, "hidden": "head", "served": "head"}.get(name, "")
        return {
            "name": name,
            "seconds": median(lambda r: r[name]),
            "read_seconds": median(lambda r: r[f"read {name}"]),
            "ratio_to_no_teacher": median(lambda r: r[name] / r["no teacher"]),
            "ratio_to_hidden": median(lambda r: r[name] / r["hidden"]),
            "ratio_to_sft": median(lambda r: r[name] / r["SFT"]),
            "ratio_to_least": None
            if least is None
            else median(lambda r: r[name] / (r["no teacher"] + (r[least] if least else 0))),
            **next((each for each in built if each["name"] == name), {}),
        }

    head = {"name": "head", "seconds": median(lambda r: r["head"])}
    return [*map(row, trainers), head]


def show(rows: list[dict[str, Any]], args: argparse.Namespace) -> Table:
    """The table of the figures."""
    title = f"{args.rows} x {args.tokens} tokens, V {args.vocabulary}, teacher's H {args.hidden}, {args.dtype}"
    table = Table("source", title=title)
    columns = {
        "bytes a\ntoken": ("bytes_per_token", "{:.0f}"),
        "built,\ntokens / s": ("build_tokens_per_second", "{:.0f}"),
        "read,\nms": ("read_seconds", "{:.1f}"),
        "step,\nms": ("seconds", "{:.0f}"),
        "over no\nteacher": ("ratio_to_no_teacher", "{:.3f}"),
        "over\nhidden": ("ratio_to_hidden", "{:.3f}"),
        "over\nSFT": ("ratio_to_sft", "{:.3f}"),
        "over the\nleast": ("ratio_to_least", "{:.3f}"),
    }
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        values = {key: value * (1000 if key.endswith("seconds") else 1) for key, value in row.items()
                  if isinstance(value, int | float)}  # fmt: skip
        cells = [shape.format(values[key]) if key in values else "" for key, shape in columns.values()]
        table.add_row(row["name"], *cells)
    return table


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of weights and caches")
    parser.add_argument("--vocabulary", type=int, default=50257, metavar="V", help="default: 50257, as GPT-2's")
    parser.add_argument(
        "--hidden", type=int, default=768, metavar="H", help="teacher's, a multiple of 96 (default: 768)"
    )
    parser.add_argument("--count", type=int, default=64, help="tokens of a top-k or sampled cache (default: 64)")
    parser.add_argument("--taus", type=float, nargs="+", default=[1.0, TAU], help="of these caches (default: 1 2)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a row (default: 128)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch (default: 8)")
    parser.add_argument("--rounds", type=int, default=9, help="the first two aren't counted (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="count the time on a core, for a machine that others use too; with --threads 1",
    )
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.rounds < 3 or args.hidden % 96:
        parser.error("--rounds must be at least 3 and --hidden a multiple of 96")
    if TAU not in args.taus:
        parser.error(f"--taus must have {TAU:g}, at which the steps are")
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
