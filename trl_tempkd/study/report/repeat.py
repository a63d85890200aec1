# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""How to get the same results again: recipe and commands, versions, machines; and what went wrong."""

import json
import shlex
from collections.abc import Iterable
from typing import Any

import yaml

from ...fingerprint import shown_fingerprints
from ..runs.cell import reason
from ..sweep.grid import RULES, TEMPERATURES, cells
from ..table import values_of
from .results import Results


def recipe_of(results: Results) -> str | None:
    """
    A recipe whose cells are the ones of the folder, option by option, or `None` where no single grid has led to them.
    """
    settings = results.settings
    grid: dict[str, list[Any]] = {}
    for each in settings:
        for name, value in each["factors"].items():
            values = grid.setdefault(name, [])
            if value not in values:
                values.append(value)
    given = {*grid, *TEMPERATURES, *RULES, "divergence", "divergence_kwargs", "seed", "data_seed"}
    base = {name: value for name, value in settings[0]["options"].items() if name not in given}
    recipe = {
        "base": base,
        "grid": grid,
        "evaluation": settings[0]["evaluation"],
        "tune_learning_rate": settings[0]["tune_learning_rate"],
    }
    again = {cell.name: cell.settings for cell in cells(recipe)}
    if again != {each["name"]: each for each in settings}:
        return None
    return yaml.safe_dump(recipe, sort_keys=False, width=100)


def commands_of(results: Results) -> list[str]:
    """The command of each cell whose recipe is there."""
    return [
        f"trl-tempkd distill --config {shlex.quote(str(path))}"
        for each in results.settings
        if (path := results.folder / each["name"] / "recipe.yaml").is_file()
    ]


def distinct(results: Results, key: str) -> dict[str, str]:
    """What the cells say under a key (`versions`, `machine`), each value once."""
    return values_of(results.cells, key)


def overview(results: Results) -> dict[str, str]:
    """What the sweep was, in a few lines."""
    options = [each["options"] for each in results.settings]
    evaluation = [each["evaluation"] for each in results.settings]
    seeds = {each["factors"]["seed"] for each in results.settings}
    found = {
        "Cells": f"{len(results.cells)} finished of {len(results.settings)}",
        "Student": _values(each.get("model_name_or_path") for each in options),
        "Teacher": _values(each.get("teacher_model_name_or_path") for each in options),
        "Data": _values(each.get("dataset_name") for each in options),
        "Divergences": str(len({json.dumps(each["factors"]["divergence"]) for each in results.settings})),
        "tau": _values(f"{float(each['factors']['tau']):g}" for each in results.settings),
        "Training seeds": _values(sorted(seeds)),
        "Steps": _values(each.get("max_steps") for each in options),
        "Epochs": _values(each.get("num_train_epochs") for each in options),
        "Held-out rows": _values(each.get("rows") for each in evaluation),
        "Fingerprints": shown_fingerprints(distinct(results, "fingerprints")),
        "Other data": _values(name for each in evaluation for name in each.get("datasets", {})),
        "Sampling seeds": _values(seed for each in evaluation for seed in each.get("seeds", [])),
    }
    return {name: value for name, value in found.items() if value}


def _values(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))


def provenance(results: Results) -> dict[str, str]:
    """Machine, versions, and how long all of it took."""
    found = {**distinct(results, "machine"), **distinct(results, "versions")}
    return {**found, "training and evaluation, all cells": f"{hours(results):.2f} hours"}


def hours(results: Results) -> float:
    return sum(sum((cell.get("seconds") or {}).values()) for cell in results.cells) / 3600


def failures(results: Results) -> list[tuple[str, str, str]]:
    """Cell, why it failed on one line, and all of what its error file says."""
    return [(name, reason(text), text) for name, text in results.errors.items()]
