# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
On-policy training beside TRL's trainers: time of an optimizer step, and tokens that the student generates per second.

    python benchmarks/rollouts.py                                   # a random pair, without and with checkpointing
    python benchmarks/rollouts.py --pair tiny                       # the built-in pair, which ends its completions
    python benchmarks/rollouts.py --checkpointing off --rounds 9 --output rollouts.json

The student completes every prompt. All trainers have the same weights, prompts (of the built-in data), batch size and
length of a completion; they sample at temperature 1 and minimise the reverse KL at temperature 1, in fp32. The random
pair ends a completion once in V tokens, so that all generate the same number of tokens. The contenders are TRL's
GKDTrainer and DistillationTrainer, and TemperatureKDTrainer with and without its replay buffer. With gradient
checkpointing, which is TRL's default, GKDTrainer generates without a KV cache; hence the two settings.

Each trainer runs its own `train()`, and they take turns: each round lets every one of them take one optimizer step,
from the end of its last one, so that what prepares a step counts. Speed-ups are medians over rounds of the ratio
*within the round*. A step is either generated or replayed, never both, so the two are timed apart; "half replayed" is
their mean in each round: about what a step costs over a whole run with DistiLLM's schedule (`replay_ratio` unset).
"""

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import TrainerCallback


GKD, DISTILLATION, OURS, REPLAYED, HALF = "GKD", "Distillation", "ours", "ours, replayed", "ours, half replayed"
Step = dict[str, float]


class Contender(TrainerCallback):
    """A trainer that takes one optimizer step of its `train()` per call. Counts what its student generates."""

    def __init__(self, trainer: Any, eos: int):
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.eos = eos
        self.lengths: list[int] = []
        self.generating = 0.0
        self.generate = trainer.model.generate
        trainer.model.generate = self._generate
        trainer.add_callback(self)
        self.trainer = trainer
        threading.Thread(target=self._train, daemon=True).start()

    def __call__(self) -> Step:
        """One step: its seconds, those of them in `generate`, and the tokens generated."""
        self.lengths, self.generating = [], 0.0
        start = time.perf_counter()
        self.go.release()
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return {
            "seconds": time.perf_counter() - start,
            "generating": self.generating,
            "completions": len(self.lengths),
            "tokens": sum(self.lengths),
        }

    def stop(self) -> None:
        self.trainer.control.should_training_stop = True
        self()

    def on_train_begin(self, args, state, control, **kwargs):
        self.go.acquire()

    def on_step_end(self, args, state, control, **kwargs):
        self.done.release()
        self.go.acquire()

    def _train(self) -> None:
        try:
            self.trainer.train()
        except BaseException as error:
            self.error = error
        self.done.release()

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        output = self.generate(*args, **kwargs)
        self.generating += time.perf_counter() - start
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        completions = sequences[:, kwargs["input_ids"].shape[1] :]
        ended = (completions == self.eos).cumsum(1) - (completions == self.eos).long()
        self.lengths += (ended == 0).sum(1).tolist()
        return output


def make_models(args: argparse.Namespace, tokenizer: Any) -> tuple[Any, Any]:
    """The student and the teacher, always with the same weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from trl_tempkd.tiny import TINY_MODELS, tiny_model_path

    if args.pair == "tiny":
        teacher, student = (AutoModelForCausalLM.from_pretrained(tiny_model_path(name)) for name in TINY_MODELS)
        return student.float(), teacher.float()

    def make(layers: int, seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=args.hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=args.hidden // 32,
            num_key_value_heads=args.hidden // 32,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return LlamaForCausalLM(config)

    return make(args.layers, seed=0), make(2 * args.layers, seed=1)


def make_contenders(args: argparse.Namespace, checkpointing: bool, folder: str) -> dict[str, Contender]:
    """The contenders by name, each with a student and a teacher of its own."""
    from datasets import disable_progress_bars
    from transformers import AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from transformers.utils.logging import disable_progress_bar
    from trl import DistillationConfig, DistillationTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from trl_tempkd import KDConfig, TemperatureKDTrainer
    from trl_tempkd.tiny import load_tiny_dataset, tiny_model_path

    disable_progress_bars()
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path("student"), padding_side="left")
    rows = load_tiny_dataset()["train"]
    shared: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": checkpointing,
        "per_device_train_batch_size": args.rows,
        "gradient_accumulation_steps": args.accumulation,
        "max_steps": 10**6,  # nobody gets there
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "temperature": 1.0,
    }
    on_policy: dict[str, Any] = {**shared, "lmbda": 1.0, "max_new_tokens": args.new_tokens}
    ours: dict[str, Any] = {**on_policy, "divergence": "reverse_kl", "kd_temperature": 1.0}
    makers = {
        GKD: (GKDTrainer, GKDConfig(**on_policy, beta=1.0), rows.map(to_messages, remove_columns=rows.column_names)),
        DISTILLATION: (
            DistillationTrainer,
            DistillationConfig(**shared, beta=1.0, max_completion_length=args.new_tokens),
            rows,
        ),
        OURS: (TemperatureKDTrainer, KDConfig(**ours), rows),
        # Full after the first step, so that every one from the second on is replayed
        REPLAYED: (
            TemperatureKDTrainer,
            KDConfig(**ours, replay_size=args.rows * args.accumulation, replay_ratio=1.0),
            rows,
        ),
    }
    contenders = {}
    for name, (trainer_class, config, dataset) in makers.items():
        student, teacher = make_models(args, tokenizer)
        trainer = trainer_class(
            model=student, teacher_model=teacher, args=config, train_dataset=dataset, processing_class=tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        contenders[name] = Contender(trainer, tokenizer.eos_token_id)
    return contenders


def to_messages(row: dict[str, str]) -> dict[str, Any]:
    """A row of the built-in data as a conversation, which GKDTrainer wants: the same tokens by the chat template."""
    prompt = {"role": "user", "content": row["prompt"].removesuffix("\n")}
    return {"messages": [prompt, {"role": "assistant", "content": row["completion"]}]}


def measure(args: argparse.Namespace, checkpointing: bool) -> list[dict[str, Any]]:
    """Run the rounds. Returns a row per contender."""
    label = f"{args.pair} pair, checkpointing {'on' if checkpointing else 'off'}"
    with tempfile.TemporaryDirectory() as folder:
        contenders = make_contenders(args, checkpointing, folder)
        rounds = [
            {name: step() for name, step in contenders.items()}
            for _ in track(range(args.rounds + 1), f"{label}: rounds", console=Console(stderr=True))
        ]
        for contender in contenders.values():
            contender.stop()
    del rounds[0]  # makes the optimizer's state, and fills the replay buffer
    for steps in rounds:
        for name in (GKD, DISTILLATION, OURS):
            if steps[name]["completions"] != args.rows * args.accumulation:
                raise RuntimeError(f"{name} generated {steps[name]['completions']:.0f} completions in a step.")
        if steps[REPLAYED]["completions"]:
            raise RuntimeError("A step that should have been replayed was generated.")
        steps[HALF] = {key: (steps[OURS][key] + steps[REPLAYED][key]) / 2 for key in steps[OURS]}
    return [
        {
            "pair": args.pair,
            "checkpointing": checkpointing,
            "name": name,
            "seconds": statistics.median(steps[name]["seconds"] for steps in rounds),
            "seconds_generating": statistics.median(steps[name]["generating"] for steps in rounds),
            "tokens": statistics.mean(steps[name]["tokens"] for steps in rounds),
            "tokens_per_second": tokens_per_second([steps[name] for steps in rounds]),
            **{
                f"speedup_to_{base.lower()}": statistics.median(
                    steps[base]["seconds"] / steps[name]["seconds"] for steps in rounds
                )
                for base in (GKD, DISTILLATION)
            },
        }
        for name in (*contenders, HALF)
    ]


def tokens_per_second(steps: list[Step]) -> float | None:
    """While it generates. None where nothing is generated."""
    speeds = [step["tokens"] / step["generating"] for step in steps if step["tokens"]]
    return statistics.median(speeds) if speeds else None


def show(rows: list[dict[str, Any]], args: argparse.Namespace, checkpointing: bool) -> Table:
    """The table of the figures of one setting."""
    size = f", V {args.vocabulary}, H {args.hidden}" if args.pair == "random" else ""
    title = f"{args.pair} pair{size}, {args.accumulation} x {args.rows} rows of {args.new_tokens} new tokens"
    table = Table("trainer", title=f"{title}, gradient checkpointing {'on' if checkpointing else 'off'}")
    for column in ("s / step", "tokens", "tokens / s", "x GKD", "x Distillation"):
        table.add_column(column, justify="right")
    for row in rows:
        speed = row["tokens_per_second"]
        table.add_row(
            row["name"],
            f"{row['seconds']:.2f}",
            f"{row['tokens']:.0f}",
            "" if speed is None else f"{speed:.0f}",
            f"{row['speedup_to_gkd']:.2f}",
            f"{row['speedup_to_distillation']:.2f}",
        )
    return table


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="random", choices=["random", "tiny"], help="the models (default: random)")
    parser.add_argument(
        "--checkpointing", nargs="+", default=["off", "on"], choices=["off", "on"], help="settings (default: both)"
    )
    parser.add_argument("--vocabulary", type=int, default=50257, metavar="V", help="of the random pair (50257)")
    parser.add_argument("--hidden", type=int, default=192, metavar="H", help="of the random pair, 96's multiple (192)")
    parser.add_argument("--layers", type=int, default=3, help="of the random student; the teacher has twice that (3)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of a completion (default: 64)")
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch (default: 4)")
    parser.add_argument("--accumulation", type=int, default=4, help="batches of an optimizer step (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each contender (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in ("vocabulary", "hidden", "layers", "new_tokens", "rows", "accumulation", "rounds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.hidden % 96:
        parser.error(f"--hidden must be a multiple of 96, got {args.hidden}")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # GKD is there on purpose
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # TRL's advice to use another trainer of it, and names that transformers is about to change
    logging.getLogger("trl").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(args.threads)

    results = []
    for setting in args.checkpointing:
        rows = measure(args, checkpointing=setting == "on")
        Console().print(show(rows, args, checkpointing=setting == "on"))
        results += rows
    if args.output:
        about = {
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            **{key: value for key, value in vars(args).items() if key not in ("output", "checkpointing")},
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({**about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
