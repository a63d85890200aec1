# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A sweep: its recipe checked, its cells run in one stage or two, and its conditions compared."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ... import training
from ...errors import UsageError
from ...files import write_atomically, written
from ...paths import check_writable
from ...recipes import training_parser, try_options
from ...trl_names import hint_for
from ..comparisons import comparisons
from ..declared import HYPOTHESES
from ..runs.cell import Cell, delete_weights, finished
from ..runs.pool import Launcher, import_ray, prepare, wait_until_free
from ..runs.progress import Bar, bar
from ..runs.work import DONE, FAILED
from ..table import obstacles, values_of
from . import selection
from .grid import cells, check_keys


PROG = "trl-tempkd sweep"
# What says which model a student is compared with
OF_THE_TEACHER = ("teacher_model_name_or_path", "teacher_model_revision", "teacher_cache", "teacher_server_url")


class Swept(NamedTuple):
    """What a sweep has come to: the results of the finished cells, and the names of those that failed."""

    results: list[dict[str, Any]]
    failed: list[str]


def read_cells(recipe: dict[str, Any]) -> tuple[list[Cell], list[Cell]]:
    """All cells of a recipe, with options that their runs will take, and those that run first."""
    found = cells(recipe)
    check(found)
    return found, selection.first_stage(found, recipe["select"]) if recipe["select"] else found


def check(found: Sequence[Cell]) -> None:
    """Read every condition's options as its runs will, but without the hardware that they ask for."""
    check_base(found[0].options, "`base` or `overrides`", "the cells of a sweep start")
    for cell in {json.dumps({**cell.factors, "seed": None}): cell for cell in reversed(found)}.values():
        values = try_options(cell.options, f"{PROG}: {cell.name}")
        if cell is found[0]:
            training.check(*values)


def check_base(options: dict[str, Any], where: str, who: str) -> None:
    """Stop at options that no training has, or that no run of many can have."""
    check_keys(options, {action.dest for action in training_parser()._actions}, where, hint_for)
    if options.get("resume_from_checkpoint"):
        raise UsageError(f"resume_from_checkpoint: {who} from the beginning; leave it out")


def check_data(found: Sequence[Cell]) -> None:
    """Stop at data or a teacher that no cell could be trained or scored with, before any is started."""
    from ..runs.measure import load_rows
    from ..runs.scoring import check_teacher

    trained_on = {cell.options.get("dataset_train_split"): cell for cell in reversed(found)}
    for cell in trained_on.values():
        values = try_options(cell.options, PROG)
        training.load_splits(values[0], values[1], values[3])
    load_rows(values, "dataset_test_split", found[0].evaluation["rows"])
    teachers = {json.dumps([cell.options.get(name) for name in OF_THE_TEACHER]): cell for cell in found}
    for cell in teachers.values():
        check_teacher(try_options(cell.options, PROG))


def sweep(recipe: dict[str, Any], results_dir: Path, launcher: Launcher) -> Swept:
    """
    Run the cells of a recipe that are not finished.

    Args:
        recipe (`dict[str, Any]`):
            What [`~grid.read_recipe`] has read.
        results_dir (`pathlib.Path`):
            Where results go. What is finished there isn't run again.
        launcher ([`~pool.Launcher`]):
            Where cells run.
    """
    found, stage = read_cells(recipe)
    if launcher.kind == "ray":
        import_ray()
    check_writable(results_dir, "--output_dir")
    check_data(found)
    if recipe["hypotheses"]:
        declared = {"hypotheses": recipe["hypotheses"]}
        write_atomically(results_dir / HYPOTHESES, json.dumps(declared, indent=1))
    results, failed = run_stage(stage, results_dir, launcher, recipe["keep_models"])
    if not recipe["select"]:
        return Swept(results, failed)
    chosen = selection.choose(stage, {result["name"]: result for result in results}, recipe["select"])
    selection.write(results_dir, chosen)
    rest = selection.second_stage(found, recipe["select"], chosen)
    more, failed_later = run_stage(rest, results_dir, launcher, recipe["keep_models"])
    return Swept(results + more, failed + failed_later)


def run_stage(stage: Sequence[Cell], results_dir: Path, launcher: Launcher, keep_models: bool) -> Swept:
    """Run the cells that are not finished."""
    waiting = [cell for cell in stage if finished(results_dir, cell) is None]
    failed: list[str] = []
    if waiting:
        with written(results_dir):
            results_dir.mkdir(parents=True, exist_ok=True)
            for cell in waiting:
                prepare(cell, results_dir)
            with bar("cells", len(stage), len(stage) - len(waiting)) as shown:
                failed = _run([cell.name for cell in waiting], results_dir, launcher, keep_models, shown)
    return Swept([result for cell in stage if (result := finished(results_dir, cell)) is not None], failed)


def _run(names: list[str], results_dir: Path, launcher: Launcher, keep_models: bool, shown: Bar) -> list[str]:
    failed: list[str] = []
    while names:
        busy, left = [], len(names)
        shown.update(f"{launcher.said(left)}, {len(failed)} failed")
        for name, status in launcher.run(partial(next, iter(names), None), results_dir):
            left -= 1
            if status not in (DONE, FAILED):
                busy.append(name)
                continue
            if status == FAILED:
                failed.append(name)
            elif not keep_models:
                delete_weights(results_dir / name)
            shown.say(f"{'failed' if status == FAILED else 'done'}: {name}")
            shown.advance(f"{launcher.said(left)}, {len(failed)} failed")
        names = busy  # another sweep runs them: they are looked at again when it has left one
        if names:
            shown.update(f"{len(names)} with another process")
            wait_until_free(names, results_dir)
    return failed


def compare(results: list[dict[str, Any]], results_dir: Path) -> dict[str, Any]:
    """
    Compare conditions, and write `summary/comparisons.json`.

    Returns:
        `dict[str, Any]`: What the file holds: the number of `cells`, `fingerprints` of their rows, `not_compared`, a
        line for each reason, and `comparisons`.
    """
    summary = {
        "cells": len(results),
        "fingerprints": values_of(results, "fingerprints"),
        "not_compared": obstacles(results),
        "comparisons": comparisons(results),
    }
    write_atomically(results_dir / "summary" / "comparisons.json", json.dumps(summary, indent=1))
    return summary
