# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The frontier of a sweep with `select`: every objective at tau 1, at its best tau and with its best rule."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from ..statistics import holm, mean_interval, sign_flip_test
from ..sweep.comparisons import paired
from ..sweep.scores import better, direction, label
from ..sweep.selection import TAU_1, TREATMENT, second_half
from ..sweep.study import SCORES, name_of
from .figures import Figure, Line, Panel, style_of
from .results import Results, Series, divergence_of
from .scores import table_of


Cells = dict[Any, dict[str, Any]]  # by seed
REFERENCE = "forward_kl"
LEADING = "leading"


@dataclass(frozen=True)
class Mean:
    """Over seeds and items, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass
class Change:
    """From another condition to this one. The p-values are corrected by Holm over all changes of one score."""

    difference: float
    low: float
    high: float
    p_items: float | None
    p_seeds: float | None
    n_seeds: int
    n_items: int


@dataclass
class Row:
    """
    One objective in one treatment, by seeds and items that it was not chosen on.

    Args:
        series ([`Series`]):
            The objective.
        treatment (`str`):
            `"tau 1"`, `"best tau"` or `"best rule"`.
        chosen (`str`):
            What the treatment is.
        leading (`bool`):
            Whether the search seeds found it the best of the objective's treatments.
        cells (`dict[Any, dict]`):
            The results by seed, the search seeds left out.
        means (`dict[str, Mean]`):
            By score.
        to_reference, to_own (`dict[str, Change]`):
            By score the change from forward KL at tau 1, and from the same objective at tau 1.
        ms (`float` or `None`):
            Milliseconds of a training step, the median over seeds.
        ratio (`float` or `None`):
            The same relative to forward KL at tau 1.
    """

    series: Series
    treatment: str
    chosen: str
    leading: bool
    cells: Cells
    means: dict[str, Mean] = field(default_factory=dict)
    to_reference: dict[str, Change] = field(default_factory=dict)
    to_own: dict[str, Change] = field(default_factory=dict)
    ms: float | None = None
    ratio: float | None = None


def frontier(results: Results) -> list[Row]:
    """The rows, those of the best objective first, by the treatment that the search seeds found its best."""
    if results.selection is None:
        return []
    score = results.selection["select"]["score"]
    groups = _groups(results)
    own_tau_1 = [next((row for row in group if row.treatment == TAU_1), None) for group in groups]
    reference = next((row for row in own_tau_1 if row and row.series.divergence == REFERENCE), None)
    for group in groups:
        for row in group:
            row.means = {name: mean for name in SCORES if (mean := _mean(row.cells, name)) is not None}
            row.ms = _ms(row.cells.values())
    for name in SCORES:
        known: dict[tuple[int, ...], Change | None] = {}  # the best tau may be 1: then it is one test, not two
        for group, one in zip(groups, own_tau_1, strict=True):
            for row in group:
                for other, where in ((reference, row.to_reference), (one, row.to_own)):
                    change = _change(other, row, name, known) if other else None
                    if change is not None:
                        where[name] = change
        changes = [change for change in known.values() if change is not None]
        for kind in ("p_items", "p_seeds"):
            for change, p in zip(changes, holm([getattr(each, kind) for each in changes]), strict=True):
                setattr(change, kind, p)
    for row in (row for group in groups for row in group):
        if reference and reference.ms and row.ms:
            row.ratio = row.ms / reference.ms

    def place(group: list[Row]) -> float:
        means = [row.means[score].value for row in group if row.leading and score in row.means]
        return -direction(score) * means[0] if means else np.inf

    return [row for group in sorted(groups, key=place) for row in group]


def _groups(results: Results) -> list[list[Row]]:
    """The rows by objective, with nothing but their cells."""
    assert results.selection is not None
    select = results.selection["select"]
    by_condition: dict[str, Cells] = {}
    for cell in results.cells:
        factors = dict(cell["settings"]["factors"])
        seed = factors.pop("seed")
        if seed not in select["seeds"]:
            by_condition.setdefault(json.dumps(factors, sort_keys=True), {})[seed] = cell

    objectives = results.selection["objectives"]
    varied = [
        name
        for name in (objectives[0]["factors"] if objectives else {})
        if name != "divergence" and len({json.dumps(each["factors"][name]) for each in objectives}) > 1
    ]
    # What most objectives have goes without saying
    usual = {
        name: Counter(name_of(each["factors"][name]) for each in objectives).most_common(1)[0][0] for name in varied
    }
    groups: list[list[Row]] = []
    for each in objectives:
        factors, chosen = each["factors"], each["chosen"]
        name = divergence_of(factors["divergence"])
        others = {other: name_of(factors[other]) for other in varied}
        said = [name_of(factors["divergence"]), *(f"{n} {value}" for n, value in others.items() if value != usual[n])]
        variant = sum(group[0].series.divergence == name for group in groups)
        best = max(chosen, key=lambda kind: direction(select["score"]) * chosen[kind]["score"], default=None)
        rows = [
            Row(
                Series(name, ", ".join(said), variant),
                kind,
                _said(kept["factors"]),
                kind == best,
                by_condition.get(json.dumps({**factors, **kept["factors"]}, sort_keys=True), {}),
            )
            for kind, kept in chosen.items()
        ]
        if rows:
            groups.append(rows)
    return groups


def _said(treatment: dict[str, Any]) -> str:
    tau, mode, rule = (treatment.get(name) for name in TREATMENT)
    parts = [] if rule is None else [name_of(rule)]
    parts.append(f"tau {tau:g}")
    return ", ".join([*parts, *(["teacher alone"] if mode == "teacher" and tau != 1 else [])])


def _mean(cells: Cells, score: str) -> Mean | None:
    table = table_of(cells.values(), score)
    return None if table is None else Mean(*mean_interval(second_half(table)))


def _ms(cells: Iterable[dict[str, Any]]) -> float | None:
    """Milliseconds of a step: what the trainer says that the whole training took, over its steps."""
    found = [
        1000 * entry["train_runtime"] / entry["step"]
        for cell in cells
        for entry in cell.get("log_history", [])
        if "train_runtime" in entry and entry["step"]
    ]
    return median(found) if found else None


def _change(first: Row, second: Row, score: str, known: dict[tuple[int, ...], Change | None]) -> Change | None:
    """The change between two rows of different cells, each pair of conditions once."""
    key = tuple(sorted(id(cell) for row in (first, second) for cell in row.cells.values()))
    if not first.cells or {id(cell) for cell in first.cells.values()} == {id(cell) for cell in second.cells.values()}:
        return None
    if key not in known:
        pair = paired(first.cells, second.cells, score)
        known[key] = None if pair is None else _test(second_half(pair[1] - pair[0]))
    return known[key]


def _test(differences: np.ndarray) -> Change:
    n_seeds, n_items = differences.shape
    p_seeds = sign_flip_test(differences.mean(1)) if n_seeds > 1 else None
    return Change(*mean_interval(differences), sign_flip_test(differences.mean(0)), p_seeds, n_seeds, n_items)


def frontier_figure(rows: list[Row]) -> Figure | None:
    """Every score over the cost of a step, a point for each objective."""
    drawn = [row for row in rows if row.ratio is not None]
    views = {LEADING: "the best of the three, by the search seeds"}
    views |= {kind: kind for kind in dict.fromkeys(row.treatment for row in drawn)}
    panels = []
    for score in SCORES:
        lines = [
            _point(row, score, view)
            for row in drawn
            if score in row.means
            for view in (row.treatment, *([LEADING] if row.leading else []))
        ]
        if lines:
            panels.append(Panel(label(score), lines, "time of a step, forward_kl at tau 1 = 1", better(score)))
    if not panels:
        return None
    return Figure(
        "frontier",
        "Quality against cost",
        "A point for each objective: its mean over the seeds and items that nothing was chosen on, with the 95% "
        "bootstrap interval that draws both again, over the median time of a training step.",
        panels,
        views,
        "Show",
        (LEADING,),
        columns=min(3, len(panels)),
    )


def _point(row: Row, score: str, view: str) -> Line:
    style, mean = style_of(row.series), row.means[score]
    assert row.ratio is not None
    at = [round(row.ratio, 3)]
    return Line(
        row.series.label,
        at,
        [mean.value],
        style.colour,
        style.dash,
        style.symbol,
        [mean.low],
        [mean.high],
        view,
    )
