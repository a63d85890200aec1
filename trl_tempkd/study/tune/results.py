# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a study leaves beside its store: a tidy table of the trials, and the best one as a recipe."""

import csv
import io
import json
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ...files import write_atomically
from ...fingerprint import shown_fingerprints
from ..sweep.grid import options_of
from .recipe import Tuning
from .store import Store, interrupted


FIXED = ("trial", "state", "score", "steps", "seconds", "reason")


def state_of(trial: FrozenTrial) -> str:
    if interrupted(trial):
        return "interrupted"
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def row_of(trial: FrozenTrial) -> dict[str, Any]:
    """
    A trial, tidy. `score` is that of the end of training, or of a pruned trial that of its last step; `steps` is the
    step after which a pruned trial was stopped.
    """
    pruned = trial.state == TrialState.PRUNED
    return {
        "trial": trial.number,
        "state": state_of(trial),
        "score": trial.values[0] if trial.values else None,
        "steps": trial.last_step if pruned else None,
        "seconds": trial.user_attrs.get("seconds"),
        "reason": trial.user_attrs.get("reason"),
        "parameters": dict(trial.params),
        "by_step": {str(step): value for step, value in trial.intermediate_values.items()},
        "scores": trial.user_attrs.get("scores", {}),
    }


def options_of_factors(tuning: Tuning, factors: dict[str, Any]) -> dict[str, Any]:
    """The options of `trl-tempkd distill` at settings that the space has given."""
    return options_of(tuning.base, factors, tuning.said)


def write_results(store: Store, shown: str) -> None:
    """Write `trials.json`, `trials.csv` and, once a trial is complete, `best.yaml`, which calls the folder `shown`."""
    rows = [row_of(trial) for trial in store.trials]
    tuning = store.tuning
    found = {"score": tuning.score, "direction": tuning.direction, "fingerprints": store.fingerprints, "trials": rows}
    write_atomically(store.folder / "trials.json", json.dumps({**found, "importances": importances(store)}, indent=1))
    names = sorted({name for row in rows for name in row["parameters"]})
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*FIXED, *names])
    for row in rows:
        writer.writerow([*(row[key] for key in FIXED), *(row["parameters"].get(name) for name in names)])
    write_atomically(store.folder / "trials.csv", table.getvalue())
    if store.best is not None:
        write_atomically(store.folder / "best.yaml", best_recipe(store, store.best, shown))


def best_recipe(store: Store, best: FrozenTrial, shown: str) -> str:
    """A recipe of `trl-tempkd distill` with the best settings, which trains on the whole training split."""
    import yaml

    tuning = store.tuning
    factors = tuning.space.draw(lambda name, values: value_of(best, name, values), tuning.base)
    options = {**options_of_factors(tuning, factors), "output_dir": str(Path(shown, "best"))}
    complete = sum(trial.state == TrialState.COMPLETE for trial in store.trials)
    return (
        f"# The best of {complete} complete trials of `trl-tempkd tune --config {tuning.path}`, trial {best.number}:\n"
        f"# {tuning.score} {best.values[0]:.4f} on {tuning.rows} rows held out of the training split.\n"
        f"# Fingerprints of the rows: {shown_fingerprints(store.fingerprints)}\n"
        f"#\n#   trl-tempkd distill --config {Path(shown, 'best.yaml')}\n\n"
        + yaml.safe_dump(options, sort_keys=False, width=119)
    )


def value_of(trial: FrozenTrial, name: str, values: Any) -> Any:
    value = trial.params[name]
    return values.labels[value] if hasattr(values, "labels") else value


def importances(store: Store) -> dict[str, float]:
    """The share of each parameter in what sets the best trials apart, once there are enough of them: PED-ANOVA."""
    complete = [trial for trial in store.trials if trial.state == TrialState.COMPLETE]
    if len(complete) < 4 or len({trial.values[0] for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some regimes for parameter")  # one that few trials had
        return optuna.importance.get_param_importances(store.study)
