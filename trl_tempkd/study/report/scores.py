# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The conditions of a folder by their scores, and how each differs from the best."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from ..comparisons import difference
from ..scores import LABELS, direction, kind
from ..statistics import estimate, holm
from ..table import Group, differing, paired
from .results import MODES, Results, Series


NO_SCORE = {"tokens", "teacher_entropy"}  # of the rows and the teacher, the same in every cell
DECIDING = ("rouge_l", "kl_tau1", "bits_per_byte")  # the first of these that every condition has says which is best


@dataclass(frozen=True)
class Mean:
    """Over seeds and items, with its 95% interval where it is known."""

    value: float
    low: float | None
    high: float | None


@dataclass
class Condition:
    """
    Cells that differ in their seed alone.

    Args:
        series ([`Series`]):
            Divergence and other factors.
        mode, tau (`str`, `float`):
            Whom the temperature softens, and its value.
        cells (`Group`):
            The results by seed. Of a sweep with `select`, those that nothing was chosen by.
        means (`dict[str, Mean]`):
            By score.
        to_best (`dict[str, dict]`):
            By score the difference to the condition that is best in it, as [`comparisons.difference`] has it, with
            `p_holm` over all conditions.
        ms (`float`, *optional*):
            Milliseconds of a training step, the median over seeds.
        clipped (`float`, *optional*):
            Share of the logged steps at which the gradient was clipped.
    """

    series: Series
    mode: str
    tau: float
    cells: Group
    means: dict[str, Mean] = field(default_factory=dict)
    to_best: dict[str, dict[str, Any]] = field(default_factory=dict)
    ms: float | None = None
    clipped: float | None = None

    @property
    def label(self) -> str:
        softened = f", {MODES[self.mode]}" if self.mode != "both" and self.tau != 1 else ""
        return f"{self.series.label} at tau {self.tau:g}{softened}"


def conditions(results: Results) -> list[Condition]:
    """All conditions that have a finished cell, each once: at tau 1 the modes are the same run."""
    searched = set(results.selection["select"]["seeds"]) if results.selection else set()
    found = []
    for (series, mode, tau), cells in results.table.items():
        own = {seed: cell for seed, cell in cells.items() if seed not in searched}
        if own and not (tau == 1 and mode != results.modes[0]):
            found.append(Condition(series, mode, tau, own, ms=_ms(own.values()), clipped=_clipped(own.values())))
    for score in all_scores(results):
        for condition in found:
            if (mean := mean_of(table_of(condition.cells.values(), score))) is not None:
                condition.means[score] = mean
        if direction(score) and score in by_item(results):
            _compare(found, score)
    return found


def _compare(found: Sequence[Condition], score: str) -> None:
    """What each differs from the best by. Which is the best is a choice on the same data, which Holm's p stand."""
    best = best_of(found, score)
    compared = []
    for condition in found:
        if best is None or condition is best or score not in condition.means:
            continue
        pair = paired([best.cells, condition.cells], score, differing([best.cells, condition.cells]))
        if pair is not None and not pair[1]:
            condition.to_best[score] = difference(pair[0][1] - pair[0][0])
            compared.append(condition.to_best[score])
    for change, p in zip(compared, holm([each["p"] for each in compared]), strict=True):
        change["p_holm"] = p


def best_of(found: Iterable[Condition], score: str) -> Condition | None:
    known = [condition for condition in found if score in condition.means]
    return max(known, key=lambda each: direction(score) * each.means[score].value, default=None)


def deciding(found: Sequence[Condition]) -> str | None:
    """The score by which conditions are ranked."""
    return next((score for score in DECIDING if found and all(score in each.means for each in found)), None)


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


def mean_of(table: np.ndarray | None) -> Mean | None:
    if table is None:
        return None
    found = estimate(table)
    low, high = found.interval()
    return Mean(float(found.mean), *((float(low), float(high)) if np.isfinite(found.error) else (None, None)))


def _ms(cells: Iterable[dict[str, Any]]) -> float | None:
    """Milliseconds of a step: what the trainer says that the whole training took, over its steps."""
    found = [
        1000 * entry["train_runtime"] / entry["step"]
        for cell in cells
        for entry in cell.get("log_history", [])
        if entry.get("train_runtime") is not None and entry["step"]
    ]
    return median(found) if found else None


def _clipped(cells: Iterable[dict[str, Any]]) -> float | None:
    """Of the norms that were logged, the share beyond what the run clips at, which is 1 unless its recipe says so."""
    found = [
        entry["grad_norm"] > limit > 0
        for cell in cells
        for limit in [float(cell["settings"]["options"].get("max_grad_norm", 1.0))]
        for entry in cell.get("log_history", [])
        if "grad_norm" in entry
    ]
    return sum(found) / len(found) if found else None
