# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A cell as a function: its recipe and a folder -> all that was measured of it, for one JSON file."""

import hashlib
import math
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ... import training
from ...data import load_data, select_split
from ...errors import UsageError
from ...fingerprint import by_hash, fingerprint
from ...recipes import read_options
from ..diagnostics import watch
from ..one_model import other_rows
from .cell import Cell, check_same_rows
from .scoring import baseline, baseline_key, once, score


if TYPE_CHECKING:
    from datasets import Dataset

PROG = "trl-tempkd"  # says what is wrong with a cell's options


class Recorder(TrainerCallback):
    """Keeps what a run started from, which batches it was given, and what it measured."""

    def __init__(self) -> None:
        self.initial_weights = ""
        self.batches, self.n_batches = hashlib.sha256(), 0
        self.log_history: list[dict[str, float]] = []
        self.evaluation: dict[str, float] = {}

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        if args.dataloader_num_workers:
            raise UsageError("a sweep hashes the batches where they are collated: leave dataloader_num_workers at 0")
        self.initial_weights = hash_of_weights(model)
        # Accelerate's loader iterates over the one that it wraps. It collates a batch ahead, in every cell alike.
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        loader.collate_fn = self._recording(loader.collate_fn)

    def _recording(self, collate: Callable) -> Callable:
        def recorded(rows):
            batch = collate(rows)
            ids = batch["input_ids"]
            self.n_batches += 1
            self.batches.update(f"{tuple(ids.shape)}".encode() + ids.cpu().numpy().tobytes())
            return batch

        return recorded

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.evaluation = dict(metrics or {})

    def on_train_end(self, args, state, control, **kwargs):
        self.log_history = list(state.log_history)
        assert self.n_batches, "no batch was collated: nothing is known of their order"


def hash_of_weights(model: torch.nn.Module) -> str:
    """SHA-256 of the parameters in the order of their names: name, type, shape and bytes of each."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        weight = weight.detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(options: dict[str, Any], folder: Path, callback: TrainerCallback) -> list[Any]:
    """Run `trl-tempkd distill` with these options. Returns the dataclasses that they are read to."""
    values = read_options(options, folder, PROG)
    script_args, training_args, model_args, dataset_args = values
    training.train(script_args, training_args, model_args, dataset_args, [callback], watch)
    return values


def load_split(values: list[Any], option: str) -> "Dataset":
    """The split of an option, as it is trained on."""
    return select_split(load_data(values[0], values[3]), getattr(values[0], option), option)


def load_rows(values: list[Any], option: str, count: int) -> "Dataset":
    """The split of an option, of at least so many rows, in an order by which the first so many are a sample of it."""
    rows = load_split(values, option)
    if count > len(rows):
        split = getattr(values[0], option)
        has = f"the split {split!r} has {len(rows)} rows"
        raise UsageError(f"{has}, and the recipe's `rows` needs {count}: give fewer `rows`")
    return rows.select(by_hash(rows))


def tune(cell: Cell, folder: Path) -> dict[str, Any]:
    """
    Choose the learning rate with the lowest KL at tau 1 on rows that are held out of the training split for it.

    Returns:
        `dict[str, Any]`: The `chosen` one, how many `rows` it was chosen on, and `eval_kl_tau1` by learning rate.
    """
    count, data = cell.evaluation["rows"], folder / "tuning" / "data"
    found = {}
    try:
        hold_out(read_options(cell.options, folder, PROG), count, data)
        options = on_held_out(cell.options, data)
        for rate in cell.tune_learning_rate:
            recorder = Recorder()
            train({**options, "learning_rate": rate}, folder / "tuning" / f"{rate:g}", recorder)
            found[f"{rate:g}"] = recorder.evaluation["eval_kl_tau1"]
    finally:
        shutil.rmtree(folder / "tuning", ignore_errors=True)
    finite = [rate for rate in cell.tune_learning_rate if math.isfinite(found[f"{rate:g}"])]
    if not finite:
        raise UsageError(f"`tune_learning_rate`: the training has diverged at every rate: {found}")
    chosen = min(finite, key=lambda rate: found[f"{rate:g}"])
    return {"chosen": chosen, "rows": count, "eval_kl_tau1": found}


def hold_out(values: list[Any], count: int, data: Path) -> None:
    """Write the training split to a folder in two parts: `validation`, of so many rows, and `train`, the others."""
    from datasets import DatasetDict

    rows = load_rows(values, "dataset_train_split", count + 1)
    DatasetDict(train=rows.skip(count), validation=rows.take(count)).save_to_disk(data)


def on_held_out(options: dict[str, Any], data: Path) -> dict[str, Any]:
    """Options of a run on the data that [`hold_out`] has written, evaluated at its end."""
    return {
        **{key: value for key, value in options.items() if key != "datasets"},
        "dataset_name": str(data),
        "dataset_train_split": "train",
        "dataset_test_split": "validation",
        "do_eval": True,
        "eval_strategy": "no",
        "save_strategy": "no",
    }


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Everything of a cell: what its file holds."""
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable, *args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        seconds[name] = round(time.perf_counter() - start, 2)
        return result

    count = cell.evaluation["rows"]
    given = read_options(cell.options, folder, PROG)
    rows = load_rows(given, "dataset_test_split", count).take(count)  # first: there may be fewer
    fingerprints = {"train": fingerprint(load_split(given, "dataset_train_split")), "test": fingerprint(rows)}
    fingerprints |= {name: fingerprint(other) for name, other in other_rows(cell.evaluation).items()}
    check_same_rows(folder.parent, cell, fingerprints)
    tuning = timed("tuning", tune, cell, folder) if cell.tune_learning_rate else None
    options = cell.options if tuning is None else {**cell.options, "learning_rate": tuning["chosen"]}
    recorder = Recorder()
    values = timed("training", train, options, folder, recorder)
    scored = timed("evaluation", score, values, cell.evaluation, rows)
    named = read_options(options, folder, PROG)  # the run has put folders in the place of names
    key = baseline_key(named, cell.evaluation, fingerprints)

    def shared() -> dict[str, Any]:
        return baseline(named, cell.evaluation, rows, load_rows(named, "dataset_train_split", 1))

    timed("baseline", once, folder.parent / "summary" / "baselines" / f"{key}.json", shared)
    return {
        "name": cell.name,
        "settings": cell.settings,
        "fingerprints": fingerprints,
        "hashes": {
            "initial_weights": recorder.initial_weights,
            "batch_order": recorder.batches.hexdigest(),
            "items": scored.pop("items"),
        },
        "learning_rate": values[1].learning_rate,
        "tuning": tuning,
        "baseline": key,
        **scored,
        "log_history": recorder.log_history,
        "diagnostics": live_diagnostics(folder),
        "seconds": seconds,
        "versions": {name: version(name) for name in ("trl-tempkd", "trl", "transformers", "torch", "datasets")},
        "machine": {
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if values[1].device.type == "cuda" else str(values[1].device),
            "python": platform.python_version(),
        },
    }


def live_diagnostics(folder: Path) -> list[dict[str, Any]]:
    """Which part of the distribution was fitted by which step, where `kd_diagnostics_steps` has had it measured."""
    import pandas as pd

    path = folder / "diagnostics.csv"
    if not path.is_file():
        return []
    table = pd.read_csv(path)
    return table[table["bucket"].isin(["head", "tail"])].to_dict("records")


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
