# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What waiting for a served teacher costs on-policy: an optimizer step with a server that takes its time over each row.

    python benchmarks/on_policy_served.py                     # 0.2 s a row, 8 rows at a time, 64 rows a step
    python benchmarks/on_policy_served.py --delay 1 --requests 16

The step generates its completions together, asks about each as soon as it has ended, and trains each micro-batch as
its own answers come. It is compared with the larger of two times: that of the same step with a server that answers at
once (generation and training), and the waiting alone, rows / requests * delay. Medians over steps; the first two
aren't counted.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from server import running


def seconds_of_steps(args: argparse.Namespace, delay: float) -> list[float]:
    """What each optimizer step takes, generation included."""
    from transformers import TrainerCallback

    from trl_tempkd import KDConfig, TemperatureKDTrainer
    from trl_tempkd.tiny import load_tiny_dataset, resolve

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with (
        tempfile.TemporaryDirectory() as folder,
        running("tiny:teacher", "--delay", str(delay), "--remember") as url,
    ):
        config = KDConfig(
            folder,
            teacher_server_url=url,
            teacher_server_requests=args.requests,
            teacher_model_name_or_path="tiny:teacher",
            divergence="reverse_kl",
            lmbda=1.0,
            max_new_tokens=args.new_tokens,
            generation_batch_size=args.together,
            per_device_train_batch_size=args.micro,
            gradient_accumulation_steps=args.rows // args.micro,
            max_steps=args.steps,
            learning_rate=0.0,  # so that each run generates the same
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dataset = load_tiny_dataset()["train"].select(range(args.rows * args.steps))
        TemperatureKDTrainer(resolve("tiny:student"), args=config, train_dataset=dataset, callbacks=[Clock()]).train()
    return [later - earlier for earlier, later in pairwise(ends[1:])]


def measure(args: argparse.Namespace) -> dict[str, float]:
    at_once, delayed = (statistics.median(seconds_of_steps(args, delay)) for delay in (0.0, args.delay))
    waiting = args.rows / args.requests * args.delay
    return {
        "generation_and_training": at_once,
        "waiting": waiting,
        "step": delayed,
        "ratio": delayed / max(at_once, waiting),
    }


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.2, help="seconds of the server for a row (default: 0.2)")
    parser.add_argument("--requests", type=int, default=8, help="rows in flight (default: 8)")
    parser.add_argument("--rows", type=int, default=64, help="rows of an optimizer step (default: 64)")
    parser.add_argument("--micro", type=int, default=8, help="rows of a micro-batch (default: 8)")
    parser.add_argument("--together", type=int, help="`generation_batch_size` (default: all rows of a step)")
    parser.add_argument("--new_tokens", type=int, default=128, help="of a completion, at most (default: 128)")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps (default: 8)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.rows % args.micro or args.steps < 4:
        parser.error("--rows must be a multiple of --micro, and --steps at least 4")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(args.threads)
    found = measure(args)
    table = Table("generation and training, s", "waiting, s", "step, s", "step over the larger")
    table.add_row(*(f"{found[name]:.2f}" for name in ("generation_and_training", "waiting", "step", "ratio")))
    Console().print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        about = {key: value for key, value in vars(args).items() if key != "output"}
        args.output.write_text(json.dumps({**about, **found}, indent=1))


if __name__ == "__main__":
    main()
