# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Memory and time of a step with several live teachers, all of them in memory or one at a time (`teachers_offload`).

    python benchmarks/several_teachers.py                  # docs/teachers.md: 3 routed teachers, on a CPU
    python benchmarks/several_teachers.py --mixed          # each row has all of them
    python benchmarks/several_teachers.py --device cuda    # the device's memory, also with `cpu`

Each setting is a process of its own. On a CPU memory is what it holds in all (`VmRSS` of Linux), at its most during
the steps; on a GPU what torch has allocated there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from transformers import TrainerCallback


MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=6, help="of a micro-batch")
    parser.add_argument("--tokens", type=int, default=32, help="of a row")
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--mixed", action="store_true", help="rows without a column `teacher`")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", help="JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measured(args)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        save_models(args, Path(folder))
        for where in ["none", "disk", *(["cpu"] if args.device == "cuda" else [])]:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", where, "--folder", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append({"offload": where, **json.loads(done.stdout.splitlines()[-1])})
    print("| `teachers_offload` | weights of the teachers, MiB | peak, MiB | step, ms |\n| --- | --- | --- | --- |")
    for row in results:
        print(f"| {row['offload']} | {row['weights']:.0f} | {row['peak']:.0f} | {1000 * row['step']:.0f} |")
    if args.output:
        Path(args.output).write_text(json.dumps({"results": results}, indent=1), encoding="utf-8")


def save_models(args: argparse.Namespace, folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from trl_tempkd.tiny import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny:teacher"))
    for i in range(args.teachers + 1):
        torch.manual_seed(i)
        size = args.hidden if i else 128  # the first is the student
        config = LlamaConfig(
            vocab_size=args.vocabulary, hidden_size=size, intermediate_size=4 * size, num_attention_heads=size // 64,
            num_hidden_layers=args.layers if i else 2, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / str(i))
        tokenizer.save_pretrained(folder / str(i))


def measured(args: argparse.Namespace) -> dict[str, float]:
    from datasets import Dataset

    from trl_tempkd import KDConfig, TemperatureKDTrainer

    torch.set_num_threads(args.threads)
    count = args.steps * args.accumulation * args.rows
    rows = [
        {"input_ids": [(7 * i + j) % 999 + 9 for j in range(args.tokens)], "teacher": str(i % args.teachers + 1)}
        for i in range(count)
    ]
    dataset = Dataset.from_list(rows)
    folder = Path(args.folder)
    config = KDConfig(
        str(folder / "out"), use_cpu=args.device == "cpu", bf16=False, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_strategy="no", max_steps=args.steps, per_device_train_batch_size=args.rows,
        gradient_accumulation_steps=args.accumulation, max_length=None,
        teachers=[{"name": str(i), "model": str(folder / str(i))} for i in range(1, args.teachers + 1)],
        teachers_offload=None if args.one == "none" else args.one,
    )  # fmt: skip
    trainer = TemperatureKDTrainer(
        str(folder / "0"), args=config, train_dataset=dataset.remove_columns("teacher") if args.mixed else dataset
    )
    clock = Clock()
    trainer.add_callback(clock)
    weights = sum(path.stat().st_size for path in folder.glob("[1-9]/model.safetensors"))
    with Peak(args.device) as peak:
        trainer.train()
    steps = [after - before for before, after in pairwise(clock.times)]
    return {"weights": weights / MIB, "peak": peak.most / MIB, "step": median(steps)}


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: object, **kwargs: object) -> None:
        self.times.append(time.perf_counter())


class Peak:
    """Context that finds the most bytes that are held inside of it, of a CPU by looking every few milliseconds."""

    def __init__(self, device: str):
        self.device, self.most = device, 0
        self._done = threading.Event()

    def __enter__(self) -> "Peak":
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
            self.most = max(self.most, held)

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            self.most = torch.cuda.max_memory_allocated()
        else:
            self._done.set()
            self._thread.join()


if __name__ == "__main__":
    main()
