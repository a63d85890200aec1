# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The scores of a folder: their names, which way is better, and tau against tau 1 for every divergence."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..statistics import holm, mean_interval, sign_flip_test
from ..sweep.comparisons import paired
from ..sweep.scores import LABELS, direction, kind
from .results import Results, Series


NO_SCORE = {"tokens", "teacher_entropy"}  # of the rows and the teacher, the same in every cell


def ordered(names: Iterable[str]) -> list[str]:
    """In the order of `LABELS`, others last; greedy decoding after sampling, other data sets after all of these."""
    order = {name: number for number, name in enumerate(LABELS)}
    return sorted(set(names), key=lambda name: (name.partition("@")[2], order.get(kind(name), len(order)), name))


def all_scores(results: Results) -> list[str]:
    names = {name for cell in results.cells for part in ("scores", "means") for name in cell.get(part, {})}
    return ordered(name for name in names if kind(name) not in NO_SCORE)


def by_item(results: Results) -> list[str]:
    """The scores that have a value per item, and of which one way is better."""
    return [name for name in ordered({n for cell in results.cells for n in cell["scores"]}) if direction(name)]


def items_of(result: dict[str, Any], score: str) -> np.ndarray | None:
    """A value per item, the mean over the seeds of sampling; one value where a score is of all items together."""
    scores, means = result.get("scores") or {}, result.get("means") or {}
    if score in scores:
        values = np.mean(np.array(scores[score], dtype=float), axis=0)
    elif means.get(score) is not None:
        values = np.array([means[score]], dtype=float)
    else:
        return None
    return values if len(values) and np.isfinite(values).all() else None


def table_of(cells: Iterable[dict[str, Any]], score: str) -> np.ndarray | None:
    """Seeds by items, of the cells that were scored on the items of the first one."""
    rows = [(values, cell["hashes"]["items"]) for cell in cells if (values := items_of(cell, score)) is not None]
    same = [values for values, items in rows if items == rows[0][1] and len(values) == len(rows[0][0])]
    return np.array(same) if same else None


@dataclass(frozen=True)
class Row:
    """One divergence in one mode: its score at tau 1, and the tau at which it is best."""

    score: str
    series: Series
    mode: str
    at_1: float | None
    best_tau: float
    best: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_items: float | None = None
    p_seeds: float | None = None
    n_seeds: int = 0
    n_items: int = 0


def family(results: Results, score: str) -> list[Row]:
    """
    Every divergence in every mode. The p-values are of sign-flip tests of the best tau against tau 1, by Holm's
    correction over every tau, divergence and mode, so that they also stand the choice of the best one.
    """
    rows: list[Row] = []
    tested: list[tuple[float | None, float | None, int | None]] = []
    for series in results.series:
        for mode in results.modes:
            cells = {tau: results.table.get((series, mode, tau), {}) for tau in results.taus}
            tables = {tau: table for tau in cells if (table := table_of(cells[tau].values(), score)) is not None}
            if not tables:
                continue
            means = {tau: float(table.mean()) for tau, table in tables.items()}
            best = max(means, key=lambda tau: direction(score) * means[tau])
            row = Row(score, series, mode, means.get(1.0), best, means[best])
            row = replace(row, n_seeds=len(tables[best]), n_items=tables[best].shape[1])
            for tau in tables:
                pair = paired(cells.get(1.0, {}), cells[tau], score) if tau != 1 else None
                if pair is not None:
                    found = _test(row, pair[1] - pair[0])
                    tested.append((found.p_items, found.p_seeds, len(rows) if tau == best else None))
                    row = found if tau == best else row
            rows.append(row)
    items, seeds = holm([p for p, _, _ in tested]), holm([p for _, p, _ in tested])
    for (_, _, number), p_items, p_seeds in zip(tested, items, seeds, strict=True):
        if number is not None:
            rows[number] = replace(rows[number], p_items=p_items, p_seeds=p_seeds)
    return rows


def _test(row: Row, differences: np.ndarray) -> Row:
    mean, low, high = mean_interval(differences)
    n_seeds, n_items = differences.shape
    return replace(
        row,
        difference=mean,
        low=low,
        high=high,
        p_items=sign_flip_test(differences.mean(0)),
        p_seeds=sign_flip_test(differences.mean(1)) if n_seeds > 1 else None,
        n_seeds=n_seeds,
        n_items=n_items,
    )
