# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The loss on a GPU, forward and backward, beside its peers: milliseconds and gigabytes, as one page.

    python benchmarks/gpu.py                                # 8192 tokens, V 128256 and 151936, H 4096, bf16
    python benchmarks/gpu.py --device cpu --tokens 64 --vocabularies 1000 --hidden 32 --dtype float32    # tries it out

Contenders: this library; the kernel of TRL's DistillationTrainer (in Triton on a GPU, in torch elsewhere); Liger's
fused linear JSD (Triton) and its chunked one (torch.compile), where liger-kernel is installed; plain torch on logits
in full; and the bare matmuls that any such loss needs: two for the logits, two for the gradients.

A time is the median over repeats, of CUDA events, once everything is compiled and warm. Memory is the growth of the
peak that is allocated, less the gradients that every contender returns. What doesn't run is a line that says why. The
figures are in `--output`, as JSON and Markdown, and are written after each one, so that an end in the midst leaves
those before it.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trl_tempkd.losses import chunked_kd_loss


OURS = ("forward_kl", "reverse_kl", "jsd", "adaptive_kl")
BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}  # TRL's and Liger's names for them
LIMIT = "bare matmuls"
WARM_UP = 2

Run = Callable[[], Tensor | None]


class Problem:
    """Hidden states and heads of a student and a teacher of one width, with logits of a language model's spread."""

    def __init__(self, tokens: int, vocabulary: int, hidden: int, dtype: torch.dtype, device: torch.device):
        torch.manual_seed(0)

        def draw(*size: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*size, device=device, dtype=dtype) * scale

        spread = 3 / hidden**0.5
        self.hidden = draw(tokens, hidden).requires_grad_()
        self.weight = draw(vocabulary, hidden, scale=spread).requires_grad_()
        self.teacher_hidden, self.teacher_weight = draw(tokens, hidden), draw(vocabulary, hidden, scale=spread)
        self.labels = torch.randint(vocabulary, (tokens,), device=device)

    @property
    def gradient_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.hidden, self.weight))

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    @torch.no_grad()
    def matmuls(self) -> None:
        logits = self.hidden @ self.weight.T
        self.teacher_hidden @ self.teacher_weight.T
        self.hidden.grad = logits @ self.weight
        self.weight.grad = logits.T @ self.hidden

    def ours(self, divergence: str, tau: float) -> Tensor:
        taus = {"student_temperature": tau, "teacher_temperature": tau}
        operands = (self.hidden, self.weight, self.teacher_hidden, self.teacher_weight)
        return chunked_kd_loss(*operands, divergence=divergence, labels=self.labels, **taus).loss

    def trl(self, divergence: str, tau: float) -> Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        student, teacher = (self.hidden, self.weight, None), (self.teacher_hidden, self.teacher_weight, None)
        plain_logits = (1.0, None) * 2  # scale and soft-capping of both
        return ChunkedDivergenceFunction.apply(*student, *teacher, BETA[divergence], tau, *plain_logits)[0].mean()

    def liger_fused(self, divergence: str, tau: float) -> Tensor:
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        loss = LigerFusedLinearJSD(jsd_beta=BETA[divergence], temperature=tau)
        return loss(self.hidden, self.weight, self.teacher_hidden, self.teacher_weight, self.labels)

    def liger_chunked(self, divergence: str, tau: float) -> Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[divergence], temperature=tau
        )
        operands = (self.hidden, self.weight, self.teacher_hidden, self.teacher_weight, self.labels)
        return loss(*operands, None, None)

    def plain(self, divergence: str, tau: float) -> Tensor:
        def log_probabilities(hidden: Tensor, weight: Tensor) -> Tensor:
            return F.log_softmax((hidden @ weight.T).float() / tau, dim=-1)

        with torch.no_grad():
            log_p = log_probabilities(self.teacher_hidden, self.teacher_weight)
        log_q = log_probabilities(self.hidden, self.weight)
        if divergence != "jsd":
            return F.kl_div(*((log_q, log_p) if divergence == "forward_kl" else (log_p, log_q)), **SUMMED)
        log_m = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
        return 0.5 * F.kl_div(log_m, log_p, **SUMMED) + 0.5 * F.kl_div(log_m, log_q, **SUMMED)


SUMMED: dict[str, Any] = {"log_target": True, "reduction": "batchmean"}


def contenders(problem: Problem, tau: float) -> Iterator[tuple[str, str, Run]]:
    """Name, divergence and one run of each; the limit first."""
    yield LIMIT, "", problem.matmuls
    for divergence in OURS:
        yield "trl_tempkd", divergence, lambda divergence=divergence: problem.ours(divergence, tau)
    peers = {"TRL's kernel": problem.trl, "plain torch": problem.plain}
    for name, loss in peers.items():
        for divergence in BETA:
            yield name, divergence, lambda loss=loss, divergence=divergence: loss(divergence, tau)
    yield "Liger, fused", "jsd", lambda: problem.liger_fused("jsd", tau)
    yield "Liger, chunked", "jsd", lambda: problem.liger_chunked("jsd", tau)


def once(run: Run, problem: Problem) -> float | None:
    """Forward and backward; the loss."""
    problem.clear()
    loss = run()
    if loss is None:
        return None
    loss.backward()
    return loss.detach()


def milliseconds(run: Run, problem: Problem) -> float:
    if problem.hidden.device.type != "cuda":
        start = time.perf_counter()
        once(run, problem)
        return 1000 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    once(run, problem)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def peak_gib(run: Run, problem: Problem) -> float | None:
    if problem.hidden.device.type != "cuda":
        return None
    problem.clear()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once(run, problem)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before - problem.gradient_bytes) / 2**30


def measure(run: Run, problem: Problem, repeats: int, seconds: float) -> dict[str, Any]:
    """The figures of one contender, or a note that says why there are none."""
    try:
        for _ in range(WARM_UP):
            loss = once(run, problem)
        gib, times, end = peak_gib(run, problem), [], time.monotonic() + seconds
        while len(times) < repeats and (len(times) < 3 or time.monotonic() < end):
            times.append(milliseconds(run, problem))
        return {"ms": statistics.median(times), "gib": gib, "loss": None if loss is None else float(loss)}
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    except ImportError as error:
        return {"note": "not installed" if "liger" in str(error.name or "") else f"{error}"}
    except Exception as error:  # of someone else's kernel; whether one of ours is among them is the exit status
        return {"note": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80] if str(error) else ''}"}
    finally:
        problem.clear()
        if problem.hidden.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def rows(args: argparse.Namespace, end: float) -> Iterator[dict[str, Any]]:
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    for vocabulary in args.vocabularies:
        shape = {"tokens": args.tokens, "vocabulary": vocabulary, "hidden": args.hidden}
        try:
            problem = Problem(**shape, dtype=dtype, device=device)
        except torch.OutOfMemoryError:
            yield {**shape, "tau": None, "contender": LIMIT, "divergence": "", "note": "out of memory"}
            continue
        for tau in args.taus:
            for contender, divergence, run in contenders(problem, tau):
                row = {**shape, "tau": tau, "contender": contender, "divergence": divergence}
                late = time.monotonic() > end
                found = {"note": "no time left"} if late else measure(run, problem, args.repeats, args.each)
                yield {**row, **found}
        del problem


def about(args: argparse.Namespace) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    cuda = args.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(args.device) if cuda else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "dtype": args.dtype,
        "versions": {name: installed(name) for name in ("torch", "triton", "trl", "liger-kernel", "trl-tempkd")},
    }


def page(said: dict[str, Any], found: list[dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {number or '(none)'}" for name, number in said["versions"].items())
    on_cuda = f", CUDA {said['cuda']}" if said["cuda"] else ""
    lines = ["# The loss on a GPU", "", f"{said['device']}{on_cuda}, {said['dtype']}; {versions}.", ""]
    lines += [
        "`python benchmarks/gpu.py`: forward and backward, medians. Ratios are to the bare matmuls. Memory is the"
    ]
    lines += ["growth of the allocated peak, less the gradients. The loss is there to see that all compute the same."]
    for key in dict.fromkeys((row["vocabulary"], row["tau"]) for row in found):
        own = [row for row in found if (row["vocabulary"], row["tau"]) == key]
        lines += ["", f"## {own[0]['tokens']} tokens, V = {key[0]}, H = {own[0]['hidden']}, tau {key[1]}", ""]
        lines += ["| contender | divergence | ms | ratio | GiB | loss |", "| --- | --- | --- | --- | --- | --- |"]
        limit = next((row["ms"] for row in own if row["contender"] == LIMIT and "ms" in row), None)
        for row in own:
            cells = [row["contender"], row["divergence"], *figures(row, limit)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def figures(row: dict[str, Any], limit: float | None) -> list[str]:
    if "note" in row:
        return [row["note"].replace("|", "/"), "", "", ""]
    ratio = f"{row['ms'] / limit:.2f}" if limit else ""
    gib, loss = ("" if row[name] is None else f"{row[name]:.{digits}f}" for name, digits in (("gib", 2), ("loss", 4)))
    return [f"{row['ms']:.2f}", ratio, gib, loss]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[128256, 151936])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--taus", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--repeats", type=int, default=20, help="runs of each that are timed")
    parser.add_argument("--each", type=float, default=2.0, help="seconds after which one isn't repeated further")
    parser.add_argument("--seconds", type=float, default=270.0, help="seconds after which no other one is begun")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/gpu"), help="folder of the JSON file and the page"
    )
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("No CUDA device is here. `--device cpu` tries the program out on small shapes.", file=sys.stderr)
        return 2

    args.output.mkdir(parents=True, exist_ok=True)
    said, found = about(args), []
    for row in rows(args, time.monotonic() + args.seconds):
        found.append(row)
        print(f"V {row['vocabulary']}, tau {row['tau']}, {row['contender']} {row['divergence']}:", *figures(row, None))
        (args.output / "loss.json").write_text(json.dumps({**said, "results": found}, indent=1))
        (args.output / "loss.md").write_text(page(said, found))
    failed = [row for row in found if "note" in row and row["contender"] in ("trl_tempkd", LIMIT)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
