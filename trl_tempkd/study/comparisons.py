# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Every two conditions of a sweep that differ in one factor alone, compared."""

import itertools
import json
from typing import Any

from .statistics import estimate, holm
from .table import SEED, Group, in_both_modes, paired


# Of all scores, each of which makes Holm's correction stricter; `rouge_l@NAME` is of another data set
COMPARED = ("rouge_l", "kl_tau1")
WITHOUT_TEACHER = ("rouge_l", "bits_per_byte")  # where no model is there to be compared with


def conditions_of(results: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Group]]:
    """The factors of each condition, the seed aside, and its cells."""
    found: dict[str, tuple[dict[str, Any], Group]] = {}
    for result in in_both_modes(results):
        factors = dict(result["settings"]["factors"])
        seed = factors.pop(SEED)
        found.setdefault(json.dumps(factors), (factors, {}))[1][seed] = result
    return list(found.values())


def comparisons(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Compare every two conditions that differ in one factor alone, over the seeds and items that both have. Cells are
    never compared with themselves, nor twice: both would make Holm's correction stricter.

    Returns:
        `list[dict[str, Any]]`: For each the `score`, the `factor` with its `first` and `second` value, what is
        `shared`, the `difference` (second less first) with the ends `low` and `high` of its 95% interval, `p` (`None`
        with one seed, which says nothing of other runs) and `p_holm` over the whole table, `n_seeds`, `n_items`.
    """
    rows: list[dict[str, Any]] = []
    compared: set[frozenset[str]] = set()  # at tau 1 some cells stand for two conditions
    for (one, first), (other, second) in itertools.combinations(conditions_of(results), 2):
        differing = [name for name in one if one[name] != other[name]]
        cells = [{cell["name"] for cell in group.values()} for group in (first, second)]
        both = frozenset(cells[0] | cells[1])
        if len(differing) != 1 or cells[0] & cells[1] or both in compared:
            continue
        compared.add(both)
        [factor] = differing
        shared = {name: value for name, value in one.items() if name != factor}
        change = {"factor": factor, "first": one[factor], "second": other[factor], "shared": shared}
        for score in scores_of(*first.values(), *second.values()):
            if (found := paired([first, second], score, [factor])) is not None and not found[1]:
                tables, _ = found
                rows.append({"score": score, **change, **difference(tables[1] - tables[0])})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


def scores_of(*cells: dict[str, Any]) -> list[str]:
    """The scores to compare that some of these cells have; the same of other data sets."""
    found = {name for result in cells for name in result["scores"]}
    compared = COMPARED if "kl_tau1" in found else WITHOUT_TEACHER
    return [name for score in compared for name in sorted(found) if name.partition("@")[0] == score]


def difference(table: Any) -> dict[str, Any]:
    """A paired difference of shape `(n_seeds, n_items)` in numbers."""
    found = estimate(table)
    low, high = found.interval()
    p = None if found.n_seeds == 1 else float(min(2 * min(found.above(), found.below()), 1.0))
    return {
        "difference": float(found.mean),
        "low": float(low),
        "high": float(high),
        "p": p,
        "n_seeds": found.n_seeds,
        "n_items": found.n_items,
    }
