# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A trial as a function: a cell whose recipe Optuna has chosen, which reports its score while it trains."""

import math
import time
from pathlib import Path
from typing import Any

import optuna
from transformers import TrainerCallback

from ...errors import UsageError
from ...recipes import read_options
from .cell import Cell, delete_weights
from .measure import PROG, load_rows, train
from .scoring import score
from .study import open_trial


class Reporter(TrainerCallback):
    """
    Reports the score to the study whenever it is measured in training, and stops a trial that the study prunes.

    Args:
        trial ([`~optuna.Trial`]):
            The trial.
        name (`str`):
            Name of the score in the evaluation's metrics.
    """

    def __init__(self, trial: optuna.Trial, name: str):
        self.trial, self.name = trial, name
        self.value = math.nan

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.name not in (metrics or {}):
            return  # `rouge_l` is measured afterwards
        self.value = metrics[self.name]
        if not math.isfinite(self.value):
            raise UsageError(f"{self.name} is {self.value} after {state.global_step} steps: the training has diverged")
        if state.global_step < state.max_steps:  # at the end there is nothing to stop
            self.trial.report(self.value, state.global_step)
            if self.trial.should_prune():
                raise optuna.TrialPruned


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train and score: what the trial's file holds. Its weights are deleted, being those of settings on the way."""
    begin = time.perf_counter()
    try:
        found = _measure(cell, folder)
    finally:
        delete_weights(folder)
    return {"name": cell.name, "settings": cell.settings, **found, "seconds": round(time.perf_counter() - begin, 2)}


def _measure(cell: Cell, folder: Path) -> dict[str, Any]:
    name = cell.trial["score"]
    trial = open_trial(
        Path(cell.trial["database"]), cell.trial["number"], cell.trial["pruning"], cell.trial["max_steps"]
    )
    reporter = Reporter(trial, name)
    try:
        values = train(cell.options, folder, reporter)
    except optuna.TrialPruned:
        return {"state": "pruned"}
    if name == "eval_kl_tau1":
        if math.isnan(reporter.value):
            raise UsageError(f"the evaluation measured no {name}")
        return {"state": "complete", "score": reporter.value}
    rows = load_rows(read_options(cell.options, folder, PROG), "dataset_test_split", cell.evaluation["rows"])
    means = score(values, cell.evaluation, rows)["means"]
    if name not in means:
        raise UsageError(f"the rows have no {name}: it takes prompts and references")
    return {"state": "complete", "score": means[name], "scores": means}
