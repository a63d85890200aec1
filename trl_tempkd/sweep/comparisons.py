# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What finished cells say: whether they started alike, and how their conditions compare."""

import itertools
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from ..statistics import compare, holm


def obstacles(results: list[dict[str, Any]]) -> list[str]:
    """
    What cannot be compared, a line each: cells of one seed that did not start from the same student or did not see the
    same batches, and scores that are NaN or infinite.
    """
    lines = []
    for seed in sorted({str(result["settings"]["factors"]["seed"]) for result in results}):
        same = [result for result in results if str(result["settings"]["factors"]["seed"]) == seed]
        for key, what in (("initial_weights", "initial student"), ("batch_order", "batches"), ("items", "items")):
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


def comparisons(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Compare every two conditions that differ in one factor alone, on every score, over the seeds and items that both
    have, with Holm's correction over the whole table. What [`obstacles`] names is left
    out.
    """
    table: dict[str, dict[Any, dict[str, Any]]] = {}
    for result in results:
        factors = dict(result["settings"]["factors"])
        seed = factors.pop("seed")
        table.setdefault(json.dumps(factors), {})[seed] = result
    rows: list[dict[str, Any]] = []
    for first, second in itertools.combinations(table, 2):
        one, other = json.loads(first), json.loads(second)
        differing = [name for name in one if one[name] != other[name]]
        if len(differing) != 1:
            continue
        pairs = [(table[first][s], table[second][s]) for s in table[first] if s in table[second]]
        pairs = [(a, b) for a, b in pairs if a["hashes"] == b["hashes"]]
        for score in pairs[0][0]["scores"] if pairs else ():
            # Over the seeds of sampling, the mean: they are repetitions within an item
            a, b = (np.array([np.mean(pair[i]["scores"][score], axis=0) for pair in pairs]) for i in (0, 1))
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                continue
            shared = {name: value for name, value in one.items() if name not in differing}
            values = {"factor": differing[0], "first": one[differing[0]], "second": other[differing[0]]}
            rows.append({"score": score, **values, "shared": shared, **asdict(compare(a, b))})
    for name in ("items", "seeds"):
        for row, p in zip(rows, holm([row[f"p_{name}"] for row in rows]), strict=True):
            row[f"holm_{name}"] = p
    return rows
