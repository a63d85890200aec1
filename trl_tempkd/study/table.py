# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The finished cells of a sweep by their factors, and the scores of conditions that can be paired."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .scores import kind


SEED = "seed"
# What a cell's files prove that it shares with the others of its seed
SHARED = ("initial_weights", "batch_order", "items")
# Factors by which the batches differ on purpose, and the one by which the start does
OF_BATCHES = (
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
    "packing", "dataset_name", "dataset_config", "dataset_train_split",
)  # fmt: skip
OF_START = ("model_name_or_path",)
# To another teacher the distance is another score
TO_TEACHER, TEACHER = ("kl_tau1", "reverse_kl_tau1", "agreement"), "teacher_model_name_or_path"

Group = dict[Any, dict[str, Any]]  # by training seed the result of a cell


def name_of(value: Any) -> str:
    """`"jsd"`, or `"jsd(beta=0.1)"` for one with parameters; numbers as they are best read."""
    if isinstance(value, dict) and len(value) == 1:
        [(name, kwargs)] = value.items()
        return f"{name}({', '.join(f'{key}={each}' for key, each in (kwargs or {}).items())})" if kwargs else str(name)
    return f"{value:g}" if isinstance(value, float) else str(value)


def in_both_modes(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """At tau 1 it makes no difference what is softened: those cells stand for the mode `teacher` too."""
    results = list(results)
    if {result["settings"]["factors"].get("mode") for result in results} != {"both", "teacher"}:
        return results
    again = []
    for result in results:
        settings = result["settings"]
        if settings["factors"]["tau"] == 1 and settings["factors"]["mode"] == "both":
            again.append({**result, "settings": {**settings, "factors": {**settings["factors"], "mode": "teacher"}}})
    return results + again


class Cells:
    """
    Finished cells by their factors.

    Args:
        results (`Iterable[dict[str, Any]]`):
            The files of the cells.
    """

    def __init__(self, results: Iterable[dict[str, Any]]):
        self.results = in_both_modes(results)

    def settings(self, named: Iterable[str]) -> list[dict[str, Any]]:
        """The combinations of the factors that aren't named, the seed aside."""
        left_out = {*named, SEED}
        found: dict[str, dict[str, Any]] = {}
        for result in self.results:
            own = {name: value for name, value in result["settings"]["factors"].items() if name not in left_out}
            found.setdefault(json.dumps(own, sort_keys=True), own)
        return list(found.values())

    def varied(self, settings: Sequence[dict[str, Any]]) -> list[str]:
        """The factors in which settings differ."""
        names = dict.fromkeys(name for setting in settings for name in setting)
        return [name for name in names if len({name_of(setting.get(name)) for setting in settings}) > 1]

    def find(self, factors: dict[str, Any]) -> Group:
        """The cells with these factors, by seed."""
        wanted = {name: name_of(value) for name, value in factors.items()}
        wanted = {name: number(value) for name, value in wanted.items()}
        found: Group = {}
        for result in self.results:
            own = result["settings"]["factors"]
            if all(number(name_of(own.get(name))) == value for name, value in wanted.items()):
                found[own[SEED]] = result
        return found

    def scores(self) -> list[str]:
        """The scores that every cell has."""
        every = [set(result["scores"]) for result in self.results]
        return sorted(set.intersection(*every)) if every else []


def differing(groups: Sequence[Group]) -> list[str]:
    """The factors in which conditions differ."""
    factors = [next(iter(group.values()))["settings"]["factors"] for group in groups]
    names = dict.fromkeys(name for each in factors for name in each if name != SEED)
    return [name for name in names if len({name_of(each.get(name)) for each in factors}) > 1]


def number(text: str) -> Any:
    """2 and 2.0 are the same tau, however they were written."""
    try:
        return float(text)
    except ValueError:
        return text


def paired(
    groups: Sequence[Group], score: str, differing: Iterable[str] = ()
) -> tuple[list[np.ndarray], list[str]] | None:
    """
    A score of several conditions over the seeds that all have with the same start, batches and items.

    Args:
        groups (`Sequence[Group]`):
            The cells of each condition.
        score (`str`):
            The score.
        differing (`Iterable[str]`):
            Factors in which the conditions differ: those that change batches or start do so on purpose.

    Returns:
        `tuple`: For each condition a table of shape `(n_seeds, n_items)`, the means over the seeds of sampling, which
        are repetitions within an item; and the names of the cells whose scores aren't finite. `None` where there is
        nothing to pair.
    """
    differing = set(differing)
    if TEACHER in differing and kind(score) in TO_TEACHER:
        return None
    alike = [
        name
        for name in SHARED
        if not (name == "batch_order" and differing & {*OF_BATCHES})
        and not (name == "initial_weights" and differing & {*OF_START})
    ]
    seeds = [seed for seed in groups[0] if all(seed in group for group in groups)]
    cells = [[group[seed] for group in groups] for seed in sorted(seeds, key=str)]
    cells = [same for same in cells if all(len({each["hashes"].get(name) for each in same}) == 1 for name in alike)]
    if not cells or not all(score in each["scores"] for same in cells for each in same):
        return None
    tables = [
        np.stack([values_in(same[i], score).mean(axis=0) for same in cells], axis=-2) for i in range(len(groups))
    ]
    bad = [each["name"] for same in cells for each in same if not np.isfinite(values_in(each, score)).all()]
    return (tables, bad) if len({table.shape for table in tables}) == 1 else None


def values_in(result: dict[str, Any], score: str) -> np.ndarray:
    """A score of a cell, by seed of sampling and item; NaN where there is none."""
    return np.array(result["scores"][score], dtype=float)


def values_of(results: Iterable[dict[str, Any]], key: str) -> dict[str, str]:
    """What the cells say under a key (`versions`, `machine`, `fingerprints`), each value once."""
    found: dict[str, list[str]] = {}
    for result in results:
        for name, value in (result.get(key) or {}).items():
            if str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    return {name: ", ".join(values) for name, values in found.items()}


def obstacles(results: Iterable[dict[str, Any]]) -> list[str]:
    """
    What cannot be compared, a line each: cells of one seed that should have had the same start, batches or items and
    had not, and scores that are NaN or infinite.
    """
    results = list(results)
    lines = []
    for what, key, apart in (
        ("initial student", "initial_weights", OF_START),
        ("batches", "batch_order", OF_BATCHES),
        ("items", "items", ()),
    ):
        alike: dict[str, dict[str, list[str]]] = {}
        for result in results:
            factors = result["settings"]["factors"]
            group = json.dumps([str(factors[SEED]), *(factors.get(name) for name in apart)])
            alike.setdefault(group, {}).setdefault(str(result["hashes"][key]), []).append(result["name"])
        for group, names in sorted(alike.items()):
            if len(names) > 1:
                listed = "; ".join(", ".join(each) for each in names.values())
                lines.append(f"seed {json.loads(group)[0]}: the cells differ in their {what}: {listed}")
    for result in results:
        bad = [name for name in result["scores"] if not np.isfinite(values_in(result, name)).all()]
        if bad:
            lines.append(f"{result['name']}: {', '.join(bad)} is not finite")
    return lines
