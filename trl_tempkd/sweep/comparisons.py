# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What finished cells say: whether they started alike, and how their conditions compare."""

import itertools
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from ..statistics import compare, holm


# Of all scores, each of which makes Holm's correction stricter; `rouge_l@NAME` is of another data set
COMPARED = ("rouge_l", "kl_tau1")
# With these factors a hash or the meaning of a score changes: a KL to another teacher is another score
STARTS, START, TEACHER = "initial_weights", "model_name_or_path", "teacher_model_name_or_path"


def in_both_modes(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At tau 1 it makes no difference what is softened: those cells stand for the mode `teacher` too."""
    modes = {result["settings"]["factors"].get("mode") for result in results}
    if modes != {"both", "teacher"}:
        return results
    again = []
    for result in results:
        settings = result["settings"]
        if settings["factors"]["tau"] == 1 and settings["factors"]["mode"] == "both":
            again.append({**result, "settings": {**settings, "factors": {**settings["factors"], "mode": "teacher"}}})
    return results + again


def table_of(results: list[dict[str, Any]]) -> dict[str, dict[Any, dict[str, Any]]]:
    """The results by condition, which is all factors but the seed, as JSON; and then by seed."""
    table: dict[str, dict[Any, dict[str, Any]]] = {}
    for result in in_both_modes(results):
        factors = dict(result["settings"]["factors"])
        seed = factors.pop("seed")
        table.setdefault(json.dumps(factors), {})[seed] = result
    return table


def paired(
    first: dict[Any, dict[str, Any]], second: dict[Any, dict[str, Any]], score: str, differing: str = ""
) -> tuple[np.ndarray, np.ndarray] | None:
    """
    A score of two conditions over the seeds and items that both have, each of shape `(n_seeds, n_items)`; `None` where
    they share no seed with the same start, batches and items, or a score isn't finite. Over the seeds of sampling it
    is the mean: they are repetitions within an item.
    """
    alike = [name for name in ("initial_weights", "batch_order", "items") if (name, differing) != (STARTS, START)]
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    pairs = [(a, b) for a, b in pairs if all(a["hashes"][name] == b["hashes"][name] for name in alike)]
    if not pairs or not all(score in result["scores"] for pair in pairs for result in pair):
        return None
    a, b = (np.array([np.mean(pair[i]["scores"][score], axis=0) for pair in pairs]) for i in (0, 1))
    return (a, b) if np.isfinite(a).all() and np.isfinite(b).all() else None


def obstacles(results: list[dict[str, Any]]) -> list[str]:
    """
    What cannot be compared, a line each: cells of one seed that did not start from the same student or did not see the
    same batches, and scores that are NaN or infinite.
    """
    lines = []
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        factors = result["settings"]["factors"]
        alike.setdefault((str(factors["seed"]), str(factors.get(START, ""))), []).append(result)
    for (seed, _), same in sorted(alike.items(), key=lambda item: item[0]):
        for key, what in ((STARTS, "initial student"), ("batch_order", "batches"), ("items", "items")):
            names: dict[str, list[str]] = {}
            for result in same:
                names.setdefault(result["hashes"][key], []).append(result["name"])
            if len(names) > 1:
                groups = "; ".join(", ".join(group) for group in names.values())
                lines.append(f"seed {seed}: the cells differ in their {what}: {groups}")
    for result in results:
        bad = [name for name, scores in result["scores"].items() if not np.isfinite(scores).all()]
        if bad:
            lines.append(f"{result['name']}: {', '.join(bad)} is not finite")
    return lines


def values_of(results: list[dict[str, Any]], key: str) -> dict[str, str]:
    """What the cells say under a key (`versions`, `machine`, `fingerprints`), each value once."""
    found: dict[str, list[str]] = {}
    for result in results:
        for name, value in (result.get(key) or {}).items():
            if str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    return {name: ", ".join(values) for name, values in found.items()}


def scores_of(*conditions: dict[Any, dict[str, Any]]) -> list[str]:
    """The scores to compare that all of these cells have."""
    everywhere = set.intersection(*(set(r["scores"]) for seeds in conditions for r in seeds.values()))
    return [name for score in COMPARED for name in sorted(everywhere) if name.split("@")[0] == score]


def comparisons(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Compare every two conditions that differ in one factor alone, on every score, over the seeds and items that both
    have, with Holm's correction over the whole table. What [`obstacles`] names is left
    out.
    """
    table = table_of(results)
    rows: list[dict[str, Any]] = []
    for first, second in itertools.combinations(table, 2):
        one, other = json.loads(first), json.loads(second)
        differing = [name for name in one if one[name] != other[name]]
        if len(differing) != 1:
            continue
        for score in scores_of(table[first], table[second]):
            values = paired(table[first], table[second], score, differing[0])
            if values is None or (score.split("@")[0], differing[0]) == ("kl_tau1", TEACHER):
                continue
            shared = {name: value for name, value in one.items() if name not in differing}
            change = {"factor": differing[0], "first": one[differing[0]], "second": other[differing[0]]}
            rows.append({"score": score, **change, "shared": shared, **asdict(compare(*values))})
    for name in ("items", "seeds"):
        for row, p in zip(rows, holm([row[f"p_{name}"] for row in rows]), strict=True):
            row[f"holm_{name}"] = p
    return rows
