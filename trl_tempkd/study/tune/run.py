# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A study: its recipe checked, rows held out, its trials run as cells, and what became of each noted in the store."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna

from ... import training
from ...files import written
from ...fingerprint import fingerprint
from ...objectives import own_sources
from ...paths import check_writable
from ...recipes import try_options
from ..runs.cell import EVALUATION, Cell, reason_of
from ..runs.pool import Launcher, prepare
from ..runs.progress import Bar, bar
from ..runs.work import DONE
from ..sweep.run import check_base
from .recipe import Tuning
from .results import options_of_factors, row_of, write_results
from .store import Store, name_of


PROG = "trl-tempkd tune"


def check(tuning: Tuning) -> None:
    """Read the options at every value of a list and at both ends of every range, as a trial will."""
    check_base(tuning.base, f"`base` or `overrides` in {tuning.path}", "trials start")
    for number, factors in enumerate(tuning.space.corners(tuning.base)):
        values = try_options(options_of_factors(tuning, factors), f"{PROG}: {tuning.path}")
        if not number:
            training.check(*values)


def tune(tuning: Tuning, shown: str, launcher: Launcher) -> Store:
    """
    Run trials until there are as many as are wanted.

    Args:
        tuning ([`~recipe.Tuning`]):
            What is tuned.
        shown (`str`):
            Where results go, as it is shown. A study that is there already goes on.
        launcher ([`~pool.Launcher`]):
            Where trials run.
    """
    check_writable(shown, "--output_dir")
    folder = Path(shown).resolve()
    with written(folder):
        store = Store(folder, tuning)
        hold_out_rows(store)
        try:
            _run(store, shown, launcher)
        except KeyboardInterrupt:
            with store.lock():
                store.recover()
                write_results(store, shown)
            raise
        with store.lock():
            write_results(store, shown)
    return store


def hold_out_rows(store: Store) -> None:
    """
    Hold rows out of the training split, once for the study: every trial has these, whatever becomes of the data since.
    """
    import datasets

    from ..runs.measure import hold_out
    from ..runs.scoring import check_teacher

    datasets.disable_progress_bars()
    data, part = store.folder / "data", store.folder / "data.part"
    values = try_options(store.tuning.base, PROG)
    if store.tuning.score == "rouge_l":
        check_teacher(values)
    with store.lock():
        if not data.is_dir():
            training.load_splits(values[0], values[1], values[3])
            try:
                hold_out(values, store.tuning.rows, part)
                part.rename(data)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        if "fingerprints" not in store.study.user_attrs:
            held_out = datasets.load_from_disk(str(data))
            found = {split: fingerprint(rows) for split, rows in held_out.items()}
            store.study.set_user_attr("fingerprints", found)


def _run(store: Store, shown: str, launcher: Launcher) -> None:
    running: dict[str, tuple[optuna.Trial, ExitStack]] = {}

    def take() -> str | None:
        asked = store.ask()
        if asked is None:
            return None
        trial, factors, held = asked
        name = name_of(trial.number)
        running[name] = trial, held
        prepare(cell_of(store, trial.number, factors), store.trials_dir)
        update(progress, store, len(running))
        return name

    with bar("trials", store.tuning.trials) as progress:
        try:
            update(progress, store, 0)
            for name, status in launcher.run(take, store.trials_dir):
                trial, held = running.pop(name)
                with store.lock():
                    store.tell(trial, _result(store.trials_dir, name, status))
                    held.close()
                    write_results(store, shown)
                progress.say(said(row_of(store.trials[trial.number])))
                update(progress, store, len(running))
        finally:
            for _, held in running.values():
                held.close()


def cell_of(store: Store, number: int, factors: dict[str, Any]) -> Cell:
    """A trial as a cell: trained on what isn't held out, and scored on what is."""
    from ..runs.measure import on_held_out

    tuning = store.tuning
    options = {**on_held_out(options_of_factors(tuning, factors), store.folder / "data"), "push_to_hub": False}
    if tuning.pruning:
        options |= {"eval_strategy": "steps", "eval_steps": tuning.pruning["eval_steps"]}
    trial = {
        "database": str(store.database),
        "number": number,
        "score": tuning.score,
        "pruning": tuning.pruning,
        "max_steps": tuning.base.get("max_steps", -1),
    }
    evaluation = {**EVALUATION, **tuning.sampling, "rows": tuning.rows}
    return Cell(name_of(number), factors, options, evaluation, trial=trial, own=own_sources(options))


def _result(trials_dir: Path, name: str, status: int) -> dict[str, Any]:
    """How a trial ended: `state`, and `score` or `reason`."""
    if status != DONE:
        return {"state": "failed", "reason": reason_of(trials_dir, name)}
    return json.loads((trials_dir / f"{name}.json").read_text(encoding="utf-8"))


def update(progress: Bar, store: Store, running: int) -> None:
    best = store.best
    found = "" if best is None else f"best {best.values[0]:.4f} (trial {best.number}), "
    done = sum(trial.state.is_finished() for trial in store.counted)
    progress.update(f"{found}{running} running", completed=done)


def said(row: dict[str, Any]) -> str:
    """A trial that has ended, on one line."""
    score = "" if row["score"] is None else f" {row['score']:.4f}"
    reason = f": {row['reason']}" if row["reason"] else ""
    settings = ", ".join(f"{name} {short(value)}" for name, value in row["parameters"].items())
    return f"trial {row['trial']}: {row['state']}{score} ({settings}){reason}"


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
