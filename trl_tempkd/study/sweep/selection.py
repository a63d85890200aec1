# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
A sweep in two stages: every condition on a few seeds, and then three of each objective on the others.

What is said of the chosen is of the other seeds alone, whose students nothing was chosen by.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...files import write_atomically
from ..scores import direction
from .grid import Cell


TAU_1, BEST_TAU, BEST_RULE = "tau 1", "best tau", "best rule"
# How strongly and by which rule both sides are softened; the other factors are the objective
TREATMENT = ("tau", "mode", "rule")


def path_of(results_dir: Path) -> Path:
    return results_dir / "summary" / "selection.json"


def first_stage(found: Sequence[Cell], select: dict[str, Any]) -> list[Cell]:
    return [cell for cell in found if cell.factors["seed"] in select["seeds"]]


def second_stage(found: Sequence[Cell], select: dict[str, Any], selection: dict[str, Any]) -> list[Cell]:
    """The cells of the chosen conditions on the other seeds."""
    chosen = [{**objective["factors"], **kept} for objective in selection["objectives"] for kept in _kept(objective)]
    return [
        cell
        for cell in found
        if cell.factors["seed"] not in select["seeds"]
        and {name: value for name, value in cell.factors.items() if name != "seed"} in chosen
    ]


def _kept(objective: dict[str, Any]) -> list[dict[str, Any]]:
    return [each["factors"] for each in objective["chosen"].values()]


def choose(found: Sequence[Cell], results: dict[str, dict[str, Any]], select: dict[str, Any]) -> dict[str, Any]:
    """
    Choose tau 1, the best tau and the best rule of every objective.

    Args:
        found (`Sequence[Cell]`):
            The cells of the first stage.
        results (`dict[str, dict[str, Any]]`):
            By name the results of those that are finished.
        select (`dict[str, Any]`):
            The recipe's `select`: `seeds` and `score`.

    Returns:
        `dict[str, Any]`: `select`; `objectives`, each with its `factors` and under `chosen`, by `"tau 1"`,
        `"best tau"` and `"best rule"`, the `factors` kept, their mean `score` and how many they were chosen `among`;
        and `without_result`, the cells that none could be read from. The best tau is among all, 1 too. An objective
        whose grid has no rule has no best rule.
    """
    objectives: dict[str, dict[str, Any]] = {}
    conditions: dict[str, dict[str, list[float]]] = {}
    for cell in found:
        own = {name: value for name, value in cell.factors.items() if name not in (*TREATMENT, "seed")}
        treatment = {name: cell.factors[name] for name in TREATMENT if name in cell.factors}
        key = json.dumps(own)
        objectives[key] = own
        values = conditions.setdefault(key, {}).setdefault(json.dumps(treatment), [])
        scores = results.get(cell.name, {}).get("scores", {}).get(select["score"])
        values.append(float("nan") if scores is None else float(np.mean(np.array(scores, dtype=float))))

    listed = []
    for key, own in objectives.items():
        means = {text: float(np.mean(values)) for text, values in conditions[key].items()}
        usable = [(json.loads(text), mean) for text, mean in means.items() if np.isfinite(mean)]
        plain = [each for each in usable if each[0].get("rule") is None]
        groups = {
            TAU_1: [each for each in plain if each[0]["tau"] == 1],
            BEST_TAU: plain,
            BEST_RULE: [each for each in usable if each[0].get("rule") is not None],
        }
        chosen = {}
        for name, group in groups.items():
            if group:
                factors, mean = max(group, key=lambda each: direction(select["score"]) * each[1])
                chosen[name] = {"factors": factors, "score": mean, "among": len(group)}
        listed.append({"factors": own, "chosen": chosen})
    return {
        "select": select,
        "objectives": listed,
        "without_result": [cell.name for cell in found if cell.name not in results],
    }


def write(results_dir: Path, selection: dict[str, Any]) -> None:
    write_atomically(path_of(results_dir), json.dumps(selection, indent=1))
