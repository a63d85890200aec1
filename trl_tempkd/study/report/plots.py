# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The figures of the students: scores over tau, training curves, and what they fit while they learn."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..diversity import pseudo_values
from ..scores import better, label
from ..statistics import estimate
from .figures import FAINT, INK, Figure, Line, Panel, style_of, tau_colour
from .results import MODES, Results
from .scores import all_scores, items_of, mean_of, table_of


POINTS = 120  # of a training curve


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


def scores_over_tau(results: Results) -> Figure | None:
    """Every score over tau, a panel for each mode."""
    scores = all_scores(results)
    panels = []
    for mode in results.modes:
        lines = [line for score in scores for line in _score_lines(results, mode, score)]
        titles = {score: f"{label(score)} ({better(score)})" for score in scores}
        panels.append(Panel(MODES[mode], lines, "tau", titles, results.taus))
    if not scores or not panels:
        return None
    return Figure(
        "scores",
        "Scores over tau",
        "Means over training seeds and held-out rows, with 95% intervals for other seeds and rows (with one seed, for "
        "other rows alone). Where a score is of all rows together (perplexity, calibration, distinct-n), they are for "
        "other seeds alone. At tau 1 both modes are the same runs.",
        panels,
        {score: label(score) for score in scores},
        "Score",
        tuple(score for score in ("rouge_l", "kl_tau1", "bits_per_byte") if score in scores),
        listed=True,
    )


def _score_lines(results: Results, mode: str, score: str) -> list[Line]:
    lines = []
    for series in results.series:
        found = {
            tau: mean
            for tau in results.taus
            if (mean := mean_of(table_of(results.table.get((series, mode, tau), {}).values(), score))) is not None
        }
        if found:
            style, means = style_of(series), list(found.values())
            # A condition whose interval isn't known (one number in all) has none in the band
            low = [rounded(mean.value if mean.low is None else mean.low) for mean in means]
            high = [rounded(mean.value if mean.high is None else mean.high) for mean in means]
            middle = [rounded(mean.value) for mean in means]
            lines.append(
                Line(series.label, list(found), middle, style.colour, style.dash, style.symbol, low, high, score)
            )
    ends = [results.taus[0], results.taus[-1]]
    for part, title, colour, dash in (
        ("teacher", "teacher", INK, "solid"),
        ("start", "student before training", FAINT, "dash"),
    ):
        values: dict[str, list[float]] = {}
        for baseline in results.baselines.values():
            if baseline[part] and (items := items_of(baseline[part], score)) is not None:
                values.setdefault(str(baseline[part].get("name")), []).append(float(items.mean()))
        for name, found_here in values.items():
            full = title if len(values) == 1 else f"{title} ({name})"
            lines.append(Line(full, ends, [rounded(float(np.mean(found_here)))] * 2, colour, dash, view=score))
    return lines


def quality_over_diversity(results: Results) -> Figure | None:
    """What the students score at each self-BLEU, of cells that were sampled at several temperatures."""
    measures = {"rouge_l": label("rouge_l"), "length": label("length")}
    views: dict[str, str] = {}
    panels = {
        (measure, mode): Panel(f"{title}; {MODES[mode]}", [], label("self_bleu"), title)
        for measure, title in measures.items()
        for mode in results.modes
    }
    for (series, mode, tau), cells in results.table.items():
        style = style_of(series)
        own, others = f"series {series.label}", f"tau {tau:g}"
        for measure in measures:
            x, y, low, high = _diversity_curve(cells.values(), measure)
            if not x:
                continue
            views[own], lines = f"{series.label}, every tau", panels[measure, mode].lines
            views[others] = f"tau {tau:g}, every divergence"
            colour = tau_colour(tau, results.taus)
            lines.append(Line(f"tau {tau:g}", x, y, colour, "solid", "circle", low, high, own))
            lines.append(Line(series.label, x, y, style.colour, style.dash, style.symbol, low, high, others))
    if not views:
        return None
    return Figure(
        "diversity",
        "Quality over diversity",
        "Each point is one temperature of sampling. A sharper student writes texts that are more alike (a higher "
        "self-BLEU), and scores higher for that alone, so compare the curves at one self-BLEU, and look at the length "
        "there. Means over training seeds, with 95% intervals for other seeds and texts.",
        list(panels.values()),
        dict(sorted(views.items(), key=lambda view: view[0].startswith("series"))),
        "Show",
        tuple(view for view in views if view.startswith("tau")),
        columns=len(results.modes) if len(results.modes) > 1 else 2,
    )


def _diversity_curve(cells: Iterable[dict[str, Any]], measure: str) -> list[list[float]]:
    """Self-BLEU, mean, and both ends of its interval, at the temperatures of sampling that all cells have."""
    curves = [{point["temperature"]: point for point in cell.get("curve") or []} for cell in cells]
    points = []
    for temperature in set.intersection(*map(set, curves)) if curves else ():
        found = estimate(np.array([pseudo_values(curve[temperature][measure]) for curve in curves]))
        low, high = (end if math.isfinite(end) else found.mean for end in found.interval())
        x = float(np.mean([curve[temperature]["self_bleu"][0] for curve in curves]))
        points.append(tuple(rounded(float(value)) for value in (x, found.mean, low, high)))
    return [[point[i] for point in sorted(points)] for i in range(4)]


def training_curves(results: Results) -> Figure | None:
    """Loss and distance from the teacher by step, one divergence at all temperatures or the other way round."""
    measures = {"loss": "training loss (own divergence, rescaled)", "kl_tau1": label("kl_tau1") + ", training rows"}
    views: dict[str, str] = {}
    panels: dict[tuple[str, str], list[Line]] = {(name, mode): [] for name in measures for mode in results.modes}
    for (series, mode, tau), cells in results.table.items():
        style = style_of(series)
        for measure in measures:
            steps, values = _curve(cells.values(), measure)
            if not steps:
                continue
            colour = tau_colour(tau, results.taus)
            views[f"series {series.label}"] = f"{series.label}, every tau"
            lines = panels[measure, mode]
            lines.append(Line(f"tau {tau:g}", steps, values, colour, view=f"series {series.label}"))
            if len(results.series) > 1:
                views[f"tau {tau:g}"] = f"tau {tau:g}, every divergence"
                lines.append(Line(series.label, steps, values, style.colour, style.dash, view=f"tau {tau:g}"))
    if not views:
        return None
    return Figure(
        "training",
        "Training curves",
        "Means over the seeds. The loss is the divergence that is minimised at its own temperature and cannot be "
        "compared between divergences or temperatures; the KL at tau 1 can.",
        [Panel(MODES[mode], lines, "step", measures[measure]) for (measure, mode), lines in panels.items()],
        dict(sorted(views.items(), key=lambda view: view[0].startswith("tau"))),
        "Show",
        columns=len(results.modes),
    )


def _curve(cells: Iterable[dict[str, Any]], measure: str) -> tuple[list[int], list[float]]:
    """The mean over cells at the steps that all of them have, at most `POINTS` of them."""
    curves = [
        {entry["step"]: entry[measure] for entry in cell.get("log_history", []) if entry.get(measure) is not None}
        for cell in cells
    ]
    if not curves:
        return [], []
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    steps = [step for step in steps if all(math.isfinite(curve[step]) for curve in curves)]
    kept = steps[:: max(1, math.ceil(len(steps) / POINTS))]
    kept = [*kept, steps[-1]] if kept and kept[-1] != steps[-1] else kept
    return kept, [rounded(float(np.mean([curve[step] for curve in curves]))) for step in kept]


def head_and_tail(results: Results) -> Figure | None:
    """What is left to fit in the teacher's head and in its tail, over the steps."""
    measures = {"error": "abs(p - q)", "forward_kl": "part of KL(p, q)", "reverse_kl": "part of KL(q, p)"}
    views = {
        f"{measure} {tau:g}": f"{title}, trained at tau {tau:g}"
        for measure, title in measures.items()
        for tau in results.taus
    }
    titles = {view: measures[view.split()[0]] for view in views}
    panels = {
        (mode, part): Panel(f"{part}; {MODES[mode]}", [], "step", titles)
        for mode in results.modes
        for part in ("head", "tail")
    }
    found = set()
    for (series, mode, tau), cells in results.table.items():
        style = style_of(series)
        for measure in measures:
            for part in ("head", "tail"):
                curves = [
                    {row["step"]: row["value"] for row in rows if (row["measure"], row["bucket"]) == (measure, part)}
                    for cell in cells.values()
                    if (rows := results.live.get(cell["name"]))
                ]
                steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
                if steps:
                    view = f"{measure} {tau:g}"
                    found.add(view)
                    values = [rounded(float(np.mean([curve[step] for curve in curves]))) for step in steps]
                    line = Line(series.label, steps, values, style.colour, style.dash, style.symbol, view=view)
                    panels[mode, part].lines.append(line)
    if not found:
        return None
    return Figure(
        "head_tail",
        "Head and tail while they learn",
        "Measured at tau 1, whatever the training's. The head is half of the teacher's mass, as in adaptive_kl; p is "
        "the teacher and q the student. Means over the seeds.",
        list(panels.values()),
        {view: title for view, title in views.items() if view in found},
        "Show",
    )
