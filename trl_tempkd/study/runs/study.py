# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Optuna's store of a study, as all processes open it that work on it: an SQLite file in the results' folder."""

import weakref
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage


optuna.logging.set_verbosity(optuna.logging.WARNING)

NAME = "tune"
DATABASE = "study.db"
PATIENCE = 120.0  # seconds that one process waits for another one to have written


def open_storage(database: Path) -> RDBStorage:
    """
    The store. Its locks go with the process that holds them, and what a killed process, or a full disk, has left half
    written is rolled back by whoever opens it next: both are SQLite's. Its connections are closed with it, which
    Optuna leaves to Python.
    """
    storage = RDBStorage(f"sqlite:///{database}", engine_kwargs={"connect_args": {"timeout": PATIENCE}})
    weakref.finalize(storage, storage.engine.dispose)
    return storage


def make_pruner(pruning: dict[str, Any], max_steps: int) -> optuna.pruners.BasePruner:
    """The pruner of a recipe's `pruning`, for trials of so many steps."""
    if not pruning:
        return optuna.pruners.NopPruner()
    if pruning["method"] == "hyperband":
        return optuna.pruners.HyperbandPruner(pruning["eval_steps"], max_steps, pruning["reduction_factor"])
    return optuna.pruners.MedianPruner(pruning["startup_trials"], pruning["warmup_steps"])


def trial_id(storage: RDBStorage, number: int) -> int:
    return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(NAME), number)


def open_trial(database: Path, number: int, pruning: dict[str, Any], max_steps: int) -> optuna.Trial:
    """A trial that another process has asked for, to report what it measures."""
    storage = open_storage(database)
    pruner, sampler = make_pruner(pruning, max_steps), optuna.samplers.RandomSampler()  # nothing is drawn here
    study = optuna.load_study(study_name=NAME, storage=storage, pruner=pruner, sampler=sampler)
    return optuna.Trial(study, trial_id(storage, number))
