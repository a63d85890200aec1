# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of the loss, forward and backward, beside its peers.

    python benchmarks/loss.py                                # every divergence, the default shapes, fp32
    python benchmarks/loss.py --dtype bfloat16 --divergences forward_kl reverse_kl jsd
    python benchmarks/loss.py --shapes 1024x50257x768 --frozen-head

Everything runs in one process, interleaved: each round times every contender once, and a contender's figure is the
median over rounds of its ratio to the limit *of that round*, so that a machine that slows down slows both. The limit
is the bare matmuls that any such loss needs: two for the logits, two for the gradients (one where the head is frozen).
Memory is the growth of the process's peak resident size, less the gradients that every contender returns.
"""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.losses import chunked_kd_loss, kd_loss


DEFAULT_SHAPES = ["1024x50257x768", "1024x50257x1600", "512x151936x1024", "512x151936x2048"]
TRL_BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
TAU = 2.0
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Problem:
    """Hidden states and heads of a student and a teacher of one width, with logits of a language model's spread."""

    def __init__(self, shape: str, dtype: torch.dtype, frozen_head: bool):
        self.n, self.vocabulary, self.width = (int(x) for x in shape.split("x"))
        self.frozen_head = frozen_head
        torch.manual_seed(0)

        def draw(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*size) * scale).to(dtype)

        spread = 3 / self.width**0.5
        self.hidden = draw(self.n, self.width).requires_grad_()
        self.weight = draw(self.vocabulary, self.width, scale=spread).requires_grad_(not frozen_head)
        self.teacher_hidden = draw(self.n, self.width)
        self.teacher_weight = draw(self.vocabulary, self.width, scale=spread)
        self.labels = torch.randint(0, self.vocabulary, (self.n,))
        self.logit_grad = draw(self.n, self.vocabulary, scale=1e-3)

    @property
    def gradient_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.hidden, self.weight) if t.requires_grad)

    def limit(self) -> None:
        with torch.no_grad():
            self.hidden @ self.weight.T
            self.teacher_hidden @ self.teacher_weight.T
            self.logit_grad @ self.weight
            if not self.frozen_head:
                self.logit_grad.T @ self.hidden

    def ours(self, divergence: str) -> None:
        out = chunked_kd_loss(
            self.hidden,
            self.weight,
            self.teacher_hidden,
            self.teacher_weight,
            divergence=divergence,
            student_temperature=TAU,
            teacher_temperature=TAU,
            labels=self.labels,
        )
        out.loss.backward()

    def dense(self, divergence: str) -> None:
        teacher_logits = self.teacher_hidden @ self.teacher_weight.T
        loss = kd_loss(
            self.hidden @ self.weight.T,
            teacher_logits,
            divergence=divergence,
            student_temperature=TAU,
            teacher_temperature=TAU,
            labels=self.labels,
            reduction="mean",
        )
        loss.backward()

    def trl(self, divergence: str) -> None:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        per_token, _ = ChunkedDivergenceFunction.apply(
            self.hidden,
            self.weight,
            None,
            self.teacher_hidden,
            self.teacher_weight,
            None,
            TRL_BETA[divergence],
            TAU,
            1.0,
            None,
            1.0,
            None,
        )
        per_token.mean().backward()

    def liger(self) -> None:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, temperature=TAU, compiled=False)
        loss(self.hidden, self.weight, self.teacher_hidden, self.teacher_weight, self.labels).backward()

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None


def contenders(problem: Problem, divergences: list[str], peers: bool) -> dict[str, Callable[[], None]]:
    runs: dict[str, Callable[[], None]] = {"limit": problem.limit}
    for name in divergences:
        runs[f"ours {name}"] = lambda name=name: problem.ours(name)
    for name in (n for n in divergences if peers and n in TRL_BETA):
        runs[f"trl {name}"] = lambda name=name: problem.trl(name)
        runs[f"dense {name}"] = lambda name=name: problem.dense(name)
    if peers and "jsd" in divergences:
        try:
            import liger_kernel.chunked_loss  # noqa: F401

            runs["liger jsd"] = problem.liger
        except ImportError as error:
            print(f"liger jsd left out: {error}", file=sys.stderr)
    return runs


def resident_bytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_memory(run: Callable[[], None], problem: Problem) -> float:
    """Growth of the peak resident size by `run` in MiB, less the gradients it leaves."""
    problem.clear()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes("VmRSS")
    run()
    return (resident_bytes("VmHWM") - before - problem.gradient_bytes) / 2**20


def seconds(run: Callable[[], None], problem: Problem, clock: Callable[[], float]) -> float:
    problem.clear()
    start = clock()
    run()
    return clock() - start


def measure(shape: str, dtype: torch.dtype, args: argparse.Namespace) -> list[dict]:
    problem = Problem(shape, dtype, args.frozen_head)
    runs = contenders(problem, args.divergences, not args.no_peers)
    for name, run in list(runs.items()):  # compiles, and drops what does not run here
        try:
            run()
        except Exception as error:
            if name.startswith(("ours", "limit")):
                raise
            print(f"{name} left out: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            del runs[name]
    rounds = [
        {name: seconds(run, problem, CLOCKS[args.clock]) for name, run in runs.items()}
        for _ in track(range(args.rounds), f"{shape} {args.dtype}", console=Console(stderr=True))
    ]
    return [
        {
            "shape": shape,
            "dtype": args.dtype,
            "frozen_head": args.frozen_head,
            "name": name,
            "seconds": statistics.median(r[name] for r in rounds),
            "ratio_to_limit": statistics.median(r[name] / r["limit"] for r in rounds),
            "extra_peak_mib": peak_memory(run, problem),
        }
        for name, run in runs.items()
    ]


def show(rows: list[dict]) -> None:
    table = Table(
        "contender", "seconds", "ratio to limit", "extra peak MiB", title=f"{rows[0]['shape']} {rows[0]['dtype']}"
    )
    for row in rows:
        table.add_row(
            row["name"], f"{row['seconds']:.3f}", f"{row['ratio_to_limit']:.2f}", f"{row['extra_peak_mib']:.0f}"
        )
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", default=DEFAULT_SHAPES, metavar="NxVxH", help="tokens x vocabulary x width"
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--divergences", nargs="+", default=list(DIVERGENCES), choices=list(DIVERGENCES))
    parser.add_argument(
        "--frozen-head", action="store_true", help="the student's head takes no gradient, as with LoRA"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave out TRL, the dense loss and Liger")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: summed over threads, for a busy machine")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = []
    for shape in args.shapes:
        rows += (new := measure(shape, getattr(torch, args.dtype), args))
        show(new)
    if args.output:
        about = {
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "threads": args.threads,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({**about, "rounds": args.rounds, "results": rows}, indent=1))


if __name__ == "__main__":
    main()
