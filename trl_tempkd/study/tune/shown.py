# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A study on a screen: its space before it runs, and its best trials."""

from collections import Counter
from functools import partial

import optuna
import yaml
from optuna.trial import FrozenTrial
from rich.table import Table

from .recipe import Tuning
from .results import state_of
from .run import short
from .store import Store, make_sampler, suggest


SHOWN = 5  # rows of the table, and settings of --dry_run


def print_space(tuning: Tuning) -> None:
    """Show the space, and the settings that are drawn before there is any result."""
    print(f"# {tuning.trials} trials; {tuning.direction} {tuning.score} on {tuning.rows} held-out rows, over")
    print(yaml.safe_dump({"space": dict(tuning.space.lines)}, sort_keys=False, width=119))
    study = optuna.create_study(direction=tuning.direction)
    drawn = {}
    for number in range(min(SHOWN, tuning.trials)):
        study.sampler = make_sampler(tuning.seed, number)
        trial = study.ask()
        tuning.space.draw(partial(suggest, trial), tuning.base)
        drawn[number] = dict(trial.params)
    print("# The first settings that are drawn")
    print(yaml.safe_dump({"trials": drawn}, sort_keys=False, width=119))
    print("# What all trials share")
    print(yaml.safe_dump({"base": tuning.base}, sort_keys=False, width=119), end="")


def table_of(store: Store, best: list[FrozenTrial]) -> Table:
    """The best trials, a row each."""
    states = Counter(state_of(trial) for trial in store.trials)
    table = Table(title=", ".join(f"{count} {state}" for state, count in states.items()))
    names = list(dict.fromkeys(name for trial in best for name in trial.params))
    for name in ("trial", store.tuning.score, *names):
        table.add_column(name, justify="right")
    for trial in best:
        settings = (short(trial.params[name]) if name in trial.params else "" for name in names)
        table.add_row(str(trial.number), f"{trial.values[0]:.4f}", *settings)
    return table
