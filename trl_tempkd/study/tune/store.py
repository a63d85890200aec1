# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The store of a study: Optuna's, in the results' folder. Several processes may work on it, and may die.

Optuna keeps what is written (study/runs/study.py). What it can't know is ours: that a trial's process is gone, which
the lock on its folder tells at once, and that no two processes together begin more trials than are wanted.
"""

from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ...errors import UsageError
from ...locks import locked
from ..runs.study import DATABASE, NAME, make_pruner, open_storage, trial_id
from .recipe import Tuning
from .space import Choice, Range


JOURNAL = "study.log"  # of earlier versions


class Store:
    """
    A study in its folder.

    Args:
        folder (`pathlib.Path`):
            The results' folder.
        tuning ([`~recipe.Tuning`]):
            What is tuned. A store of other settings is an error.
    """

    def __init__(self, folder: Path, tuning: Tuning):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tuning, self.database = folder, tuning, folder / DATABASE
        with self.lock():
            if not self.database.exists() and (folder / JOURNAL).exists():
                take_over(folder / JOURNAL, self.database)
            self.storage = open_storage(self.database)
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=NAME,
                direction=tuning.direction,
                pruner=make_pruner(tuning.pruning, tuning.base.get("max_steps", -1)),
                load_if_exists=True,
            )
            before = self.study.user_attrs.get("settings")
            if before is None:
                self.study.set_user_attr("settings", tuning.settings)
        if before is not None:
            check_same(before, tuning.settings, folder)

    def lock(self) -> AbstractContextManager[bool]:
        """One process at a time."""
        return locked(self.folder / "tune.lock")

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def counted(self) -> list[FrozenTrial]:
        """The trials that have run or do: without those that were interrupted, and those that wait to be run again."""
        return [trial for trial in self.trials if trial.state != TrialState.WAITING and not interrupted(trial)]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Those of the rows that are trained on and of those that are held out."""
        return self.study.user_attrs.get("fingerprints", {})

    @property
    def trials_dir(self) -> Path:
        """Where each trial is a cell: `NUMBER.json`, `NUMBER.error.txt` and a folder `NUMBER`."""
        return self.folder / "trials"

    def held(self, number: int) -> AbstractContextManager[bool]:
        """Context that says whether nobody else has begun the trial and waits for it. It goes with its process."""
        return locked(self.trials_dir / name_of(number) / "begun", wait=False)

    def ask(self) -> tuple[optuna.Trial, dict[str, Any], ExitStack] | None:
        """
        Begin the next trial, if one is left: the trial, its settings, and what says that somebody waits for it, to be
        closed.
        """
        with self.lock():
            self.recover()
            if len(self.counted) >= self.tuning.trials:
                return None
            self.study.sampler = make_sampler(self.tuning.seed, len(self.counted))
            trial = self.study.ask()
            held = ExitStack()
            assert held.enter_context(self.held(trial.number)), "two trials of one number"
            factors = self.tuning.space.draw(partial(suggest, trial), self.tuning.base)
            return trial, factors, held

    def recover(self) -> None:
        """Mark trials whose process is gone as failed, and have them run again."""
        for trial in self.trials:
            if trial.state != TrialState.RUNNING:
                continue
            with self.held(trial.number) as free:
                if not free:
                    continue
            number = trial_id(self.storage, trial.number)
            self.storage.set_trial_user_attr(number, "interrupted", True)
            self.storage.set_trial_user_attr(number, "reason", "interrupted; it is run again")
            self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})

    def tell(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        """Note how a trial ended: the `state` of its `result`, and the `score`, or the `reason` why there is none."""
        for key in ("reason", "seconds", "scores"):
            if key in result:
                trial.set_user_attr(key, result[key])
        if result["state"] == "complete":
            self.study.tell(trial, result["score"])
        else:
            state = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[result["state"]]
            self.study.tell(trial, state=state)

    @property
    def best(self) -> FrozenTrial | None:
        """The complete trial with the best score."""
        return next(iter(ranked(self.trials, self.tuning)), None)


def name_of(number: int) -> str:
    """The name of a trial as a cell."""
    return f"{number:04d}"


def take_over(journal: Path, database: Path) -> None:
    """Copy the study of an earlier version, whole or not at all. Optuna leaves out a last line that was cut off."""
    part = database.with_name(f"{database.name}.part")
    part.unlink(missing_ok=True)
    storage = open_storage(part)
    source = JournalStorage(JournalFileBackend(str(journal)))
    optuna.copy_study(from_study_name=NAME, from_storage=source, to_storage=storage, to_study_name=NAME)
    storage.engine.dispose()
    part.replace(database)


def make_sampler(seed: int, index: int) -> optuna.samplers.BaseSampler:
    """
    TPE, which draws the parameters that all trials share jointly, so that it sees how tau and divergence interact. Its
    seed depends on how many trials were drawn before, and so an interrupted study draws what it would have drawn.
    """
    return optuna.samplers.TPESampler(seed=(seed * 100_003 + index) % 2**32)


def suggest(trial: optuna.Trial, name: str, values: Choice | Range) -> Any:
    if isinstance(values, Choice):
        return values.labels[trial.suggest_categorical(name, list(values.labels))]
    if values.whole:
        return trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def interrupted(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("interrupted"))


def ranked(trials: list[FrozenTrial], tuning: Tuning) -> list[FrozenTrial]:
    """The complete trials, the best first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = 1 if tuning.direction == "minimize" else -1
    return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))


def check_same(before: dict[str, Any], now: dict[str, Any], folder: Path, where: str = "") -> None:
    """Stop at the first setting in which the recipe differs from that of the store."""
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and not {"low", "high"} & {*old, *new}:
            check_same(old, new, folder, f"{where}{key}.")
        raise UsageError(
            f"{folder / DATABASE} was made with {where}{key}: {old}, and the recipe now says {new}. Give another "
            "--output_dir, or delete the folder."
        )
