# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""One trial of a study, in the process that it is started in: `python -m trl_tempkd.commands.trial FILE`."""

import json
import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import optuna
from transformers import TrainerCallback

from ..errors import UsageError
from ..files import Unwritable, write_atomically
from ..processes import end_with_input
from ..study.sweep.grid import EVALUATION
from ..study.sweep.launchers import DONE, FAILED, UNWRITABLE
from ..study.tune.store import open_trial
from . import distill
from .cell import load_rows, parse
from .scoring import score
from .sweep import delete_weights


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


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train and score: what the trial's file `result.json` holds."""
    name = settings["score"]
    trial = open_trial(folder.parent.parent, settings["trial"], settings["pruning"], settings["base"])
    reporter, values = Reporter(trial, name), parse(settings["options"], folder)
    script_args, training_args, model_args, dataset_args = values
    try:
        distill.main(script_args, training_args, model_args, dataset_args, callbacks=[reporter])
    except optuna.TrialPruned:
        return {"state": "pruned"}
    if name == "eval_kl_tau1":
        return {"state": "complete", "score": reporter.value}
    rows = load_rows(parse(settings["options"], folder), "dataset_test_split", settings["rows"])
    means = score(values, {**EVALUATION, **settings["sampling"]}, rows)["means"]
    if name not in means:
        raise UsageError(f"the rows have no {name}: it takes prompts and references")
    return {"state": "complete", "score": means[name], "scores": means}


def run(file: Path) -> int:
    """
    Run the trial of a file `RESULTS_DIR/trials/NUMBER/trial.json`.

    Returns:
        `int`: Exit status: `DONE`, `FAILED`, or `UNWRITABLE` where the disk takes no more, which is no result.
    """
    folder, begin = file.parent, time.perf_counter()
    settings = json.loads(file.read_text(encoding="utf-8"))
    try:
        try:
            result = measure(settings, folder)
        except Unwritable:
            raise
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            write_atomically(folder / "error.txt", traceback.format_exc())
            result = {"state": "failed", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        result["seconds"] = round(time.perf_counter() - begin, 2)
        write_atomically(folder / "result.json", json.dumps(result, indent=1))
    except Unwritable as error:
        traceback.print_exc()
        print(f"\n{error}", flush=True)
        return UNWRITABLE
    finally:
        delete_weights(folder)
    return FAILED if result["state"] == "failed" else DONE


if __name__ == "__main__":
    end_with_input()
    raise SystemExit(run(Path(sys.argv[1])))
