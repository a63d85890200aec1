# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The demo's models, each trained and measured in a process of its own, as many at a time as there are cores."""

import importlib
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from ..commands import rank
from ..files import write_atomically
from ..processes import LAUNCHER, freeze, quiet_when_interrupted, uncollected
from . import resolve


ROOT = Path(__file__).parents[2]
RECIPE = Path("recipes/tiny/distill.yaml")
THREADS = 1  # of a process: models this small gain next to nothing from more
# What jobs import. No tensor is touched by that: threads that have done so are missing in a fork
USED = (
    "transformers.models.llama.modeling_llama",
    "trl_tempkd.commands.distill",
    "trl_tempkd.study.evaluation",
    "trl_tempkd.trainer",
)
# MiniLLM samples at temperature 1 with the seeds 10 to 50: this is the first of them. Completions of the data have 22
# tokens on average.
GENERATION: dict[str, Any] = {"max_new_tokens": 64, "temperature": 1.0, "top_p": 1.0, "seed": 10, "batch_size": 64}


class DemoError(Exception):
    """What keeps the demo from going on. The message is the one line that is read."""


class Cell(NamedTuple):
    """One run: what is compared, everything else being the recipe's."""

    divergence: str
    tau: float

    @property
    def name(self) -> str:
        return f"{self.divergence}-tau{self.tau:g}"

    @property
    def label(self) -> str:
        return f"{self.divergence.replace('_kl', ' KL')}, tau {self.tau:g}"


class Job(NamedTuple):
    """A model of the table, trained if it has a cell, then measured: all that a process needs to know of it."""

    label: str
    model: str
    teacher: str
    cell: Cell | None
    command: list[str]
    folder: Path
    data: Path
    settings: dict[str, Any]

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def log(self) -> Path:
        return self.folder / "output.log"


def recipe_value(key: str) -> Any:
    import yaml

    return yaml.safe_load((ROOT / RECIPE).read_text(encoding="utf-8"))[key]


def finished(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result in a file, if there is one and it was reached with these settings."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if result.get("settings") == settings else None


def run_jobs(left: list[Job]) -> None:
    """
    Do jobs in processes of their own. Where forks are safe these are forks of this one, which imports once what all of
    them need.
    """
    if not left:
        return
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with uncollected():
        for name in USED:
            importlib.import_module(name)
    freeze()
    waiting = sorted(left, key=lambda job: job.cell is None)  # the longest first: those that train
    running: dict[BaseProcess, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                job = waiting.pop(0)
                process = context.Process(target=do, args=(job, os.getpid()))
                process.start()
                running[process] = job
                print(f"{job.label}: " + (f"$ {' '.join(job.command)}" if job.cell else "measured"), flush=True)
            wait([process.sentinel for process in running])
            for process in [each for each in running if not each.is_alive()]:
                say_done(running.pop(process), process.exitcode, len(waiting) + len(running))
    finally:
        for process in running:
            process.kill()
            process.join()


def say_done(job: Job, status: int | None, left: int) -> None:
    if status:
        said = job.log.read_text(encoding="utf-8", errors="replace") if job.log.is_file() else ""
        print(said[-4000:], file=sys.stderr, flush=True)
        raise DemoError(f"the run {job.label} ended with exit status {status}; what it said stands above")
    result = json.loads(job.result.read_text(encoding="utf-8"))
    took = f", trained in {result['seconds']:.0f} s" if job.cell else ""
    print(f"{job.label}: {result['kl_tau1']:.3f} nats to the teacher{took}; {left} left", flush=True)


def do(job: Job, launcher: int) -> None:
    """A job from its beginning to its result, in a process of its own: what it says goes to its log."""
    import torch

    os.chdir(ROOT)  # where the command runs
    os.environ[LAUNCHER] = str(launcher)  # whoever trains ends with it
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", THREADS)))
    log_to(job.log)
    with quiet_when_interrupted():
        result: dict[str, Any] = {"label": job.label, "settings": job.settings}
        if job.cell:
            result |= {**job.cell._asdict(), "seconds": train(job)}
            result["curve"] = read_curve(job.folder / "trainer_state.json")
        result |= score(resolve(job.model), resolve(job.teacher), job.data)
        write_atomically(job.result, json.dumps(result, indent=1))


def log_to(path: Path) -> None:
    """Everything that this process says from now on, and those below it, goes to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def train(job: Job) -> float:
    """Do what the command of a job does. Returns how many seconds it took."""
    start = time.perf_counter()
    rank.main("distill", job.command[2:])
    return round(time.perf_counter() - start, 1)


def score(model_path: str, teacher_path: str, data: Path) -> dict[str, Any]:
    """Measure a model on the held-out rows: distance to the teacher, perplexity, ROUGE-L of each row."""
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..study.evaluation import divergence_to_teacher, generate, rouge_l, tokenize

    rows = load_from_disk(str(data))["test"]
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model, teacher = (
        AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in (model_path, teacher_path)
    )
    compared = divergence_to_teacher(model, teacher, tokenize(rows, tokenizer, recipe_value("max_length")))
    completions = generate(model, tokenizer, rows["prompt"], **GENERATION)
    return {
        "parameters": model.num_parameters(),
        **compared,
        "rouge_l": rouge_l(completions, rows["completion"]),
        "completions": completions,
    }


def read_curve(path: Path) -> list[tuple[int, float]]:
    """Held-out KL at tau 1 over the steps of a run, from the trainer's log."""
    log = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    return sorted({entry["step"]: entry["eval_kl_tau1"] for entry in log if "eval_kl_tau1" in entry}.items())
