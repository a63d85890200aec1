# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What temperature rules and objectives cost: the loss of a batch, forward and backward, as the trainer computes it.

    python benchmarks/rules.py                                    # 512 tokens, V = 50257, H = 768, fp32, one thread
    python benchmarks/rules.py --shape 64x4096x128 --rounds 9 --output rules.json

Every round times each once, and a figure is the median over rounds of its ratio, in that round, to the same divergence
at a constant temperature. Seconds are of CPU time, summed over threads, so that a busy machine matters less.
Objectives that have two kinds of text are timed on the student's.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from trl_tempkd import KDConfig
from trl_tempkd.heads import Head
from trl_tempkd.objectives import OBJECTIVES, StepLoss, make_loss
from trl_tempkd.temperature_rules import TEMPERATURE_RULES


# What each is compared with
PLAIN = ("forward_kl", "reverse_kl", "skew_reverse_kl")
BASE = {"minillm": "reverse_kl", "distillm2": "skew_reverse_kl"}


class Problem:
    """The last hidden states of a batch and both heads, with logits of a language model's spread."""

    def __init__(self, shape: str):
        n, vocabulary, width = (int(x) for x in shape.split("x"))
        torch.manual_seed(0)
        spread = 3 / width**0.5
        heads = [torch.randn(vocabulary, width) * spread for _ in range(2)]
        self.student, self.teacher = Head(heads[0].requires_grad_()), Head(heads[1])
        self.hidden, self.teacher_hidden = torch.randn(n, width).requires_grad_(), torch.randn(n, width)
        # as many rows as give completions of some length, the first token of each without a label
        self.targets = torch.randint(0, vocabulary, (max(n // 128, 1), min(n, 128)))
        self.targets[:, 0] = -100

    def seconds(self, loss: StepLoss) -> float:
        self.hidden.grad = self.student.weight.grad = None
        start = time.process_time()
        teacher = (self.teacher_hidden, self.teacher)
        kwargs = {"logged": False, "training": True, "on_policy": True}
        loss(self.hidden, self.student, *teacher, self.targets, None, **kwargs).loss.backward()
        return time.process_time() - start


def contenders() -> dict[str, StepLoss]:
    """The loss of each rule and each objective, by the options of a run."""
    options: dict[str, dict[str, Any]] = {name: {"divergence": name} for name in PLAIN}
    options |= {f"rule {name}": {"kd_temperature_rule": name} for name in TEMPERATURE_RULES}
    options |= {name: {"divergence": name, "lmbda": 1.0} for name in OBJECTIVES}
    configs = {name: KDConfig("unused", use_cpu=True, bf16=False, **own) for name, own in options.items()}
    accelerator = Accelerator(cpu=True)  # after them: a config makes the state of its process anew
    made = {name: make_loss(config, accelerator, ()) for name, config in configs.items()}
    for loss in made.values():
        loss.begin(0.5)
    return made


def measure(args: argparse.Namespace) -> list[dict[str, float | str]]:
    problem, losses = Problem(args.shape), contenders()
    for loss in losses.values():  # compiles, and brings the states to where they are in the midst of a run
        problem.seconds(loss)
        loss.step(0.5)
    rounds = [{name: problem.seconds(each) for name, each in losses.items()} for _ in range(args.rounds)]
    return [
        {
            "name": name,
            "base": BASE.get(name, "forward_kl"),
            "seconds": statistics.median(r[name] for r in rounds),
            "ratio": statistics.median(r[name] / r[BASE.get(name, "forward_kl")] for r in rounds),
        }
        for name in losses
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="512x50257x768", metavar="NxVxH", help="tokens x vocabulary x width")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    records = measure(args)
    table = Table("loss", "compared with", "seconds", "ratio", title=f"{args.shape}, {args.rounds} rounds")
    for record in records:
        table.add_row(record["name"], record["base"], f"{record['seconds']:.3f}", f"{record['ratio']:.2f}")
    Console().print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        about = {"torch": torch.__version__, "shape": args.shape, "rounds": args.rounds, "threads": args.threads}
        args.output.write_text(json.dumps({**about, "records": records}, indent=1))


if __name__ == "__main__":
    main()
