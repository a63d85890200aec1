# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The figures of the gradients before any training: on which tokens each divergence acts, and how tau turns it."""

from typing import Any

import numpy as np

from .figures import DASHES, Figure, Line, Panel, style_of, tau_colour
from .plots import rounded
from .results import MODES, Results, Series


Values = dict[tuple[str, str, float, str, str], float]  # objective, mode, tau, measure, bucket

# Key -> title, caption, measure, buckets with what their lines are called, y
MEASURES: dict[str, tuple[str, str, str, dict[str, str], str]] = {
    "lifted": (
        "How much it lifts other tokens",
        "Sum of the upward gradient (where a descent raises the logit) outside the teacher's top 1, 10 and 100, with "
        "the rescale tau2, relative to tau 1.",
        "lifted_ratio",
        {"top_1": "outside top 1", "top_10": "outside top 10", "top_100": "outside top 100"},
        "upward amount, relative to tau 1",
    ),
    "mass_outside": (
        "Where the gradient is",
        "Share of the sum of abs(gradient) outside the teacher's top 1, 10 and 100: low is the head, high the tail.",
        "mass_outside",
        {"top_1": "outside top 1", "top_10": "outside top 10", "top_100": "outside top 100"},
        "share of the gradient",
    ),
    "cosine_tau1": (
        "How the temperature turns it",
        "Cosine with the same divergence's gradient at tau 1: at 1, the temperature only rescales it.",
        "cosine",
        {"tau_1": ""},
        "cosine to tau 1",
    ),
    "fkl_rkl": (
        "How far forward and reverse KL differ",
        "Cosine between the gradients of forward and reverse KL at the same tau: at 1, they are one objective.",
        "cosine",
        {"reverse_kl": ""},
        "cosine, FKL and RKL",
    ),
    "norm_ratio": (
        "How the temperature scales it",
        "Norm of the gradient relative to tau 1, as it is and with the rescale tau2.",
        "norm_ratio",
        {"tau2": "with tau2", "none": "not rescaled"},
        "norm relative to tau 1",
    ),
    "effective_tokens": (
        "Over how many tokens it is spread",
        "Effective tokens: exp of the entropy of abs(gradient) over the vocabulary.",
        "effective_tokens",
        {"-": ""},
        "effective tokens",
    ),
}


def by_pair(results: Results) -> dict[str, Values]:
    """For each pair of a student before training and a teacher what was measured."""
    rows: dict[str, dict[Any, list[float]]] = {}
    for baseline in results.baselines.values():
        for row in baseline.get("diagnostics") or ():
            key = (row["objective"], row["mode"], float(row["tau"]), row["measure"], row["bucket"])
            pair = f"{baseline['start'].get('name')}, {baseline['teacher'].get('name')}"
            rows.setdefault(pair, {}).setdefault(key, []).append(float(row["value"]))
    return {
        pair: {key: rounded(float(np.mean(values))) for key, values in found.items()} for pair, found in rows.items()
    }


def asymmetry(results: Results) -> list[Figure]:
    """The figures for every pair."""
    figures = []
    pairs = by_pair(results)
    for number, (pair, values) in enumerate(pairs.items()):
        suffix, of = (f"_{number + 1}" if number else ""), (f" ({pair})" if len(pairs) > 1 else "")
        modes = [mode for mode in MODES if any(key[1] == mode for key in values)]
        for key, (title, caption, measure, buckets, y) in MEASURES.items():
            only = ["forward_kl"] if key == "fkl_rkl" else None
            panels = [_over_tau(values, mode, measure, buckets, y, only) for mode in modes]
            if any(panel.lines for panel in panels):
                png = ("",) if key in ("lifted", "mass_outside", "cosine_tau1", "fkl_rkl") else ()
                figures.append(Figure(key + suffix, title + of, caption, panels, png=png, listed=True))
        histograms = _histograms(values, modes, key="ranks" + suffix, of=of)
        if histograms:
            figures.append(histograms)
    return figures


def reading(results: Results) -> list[str]:
    """What the temperature does to both KLs' gradients, in sentences that follow from the numbers."""
    said = []
    pairs = by_pair(results)
    for pair, values in pairs.items():
        for mode in [mode for mode in MODES if any(key[1] == mode for key in values)]:
            taus = sorted({key[2] for key in values if key[1] == mode and key[3] == "lifted_ratio" and key[2] > 1})
            taus = [tau for tau in taus if tau in (2.0, 4.0)] or taus[-1:]
            found = {
                name: [
                    [values.get((name, mode, tau, measure, bucket)) for tau in taus]
                    for measure, bucket in (("lifted_ratio", "top_10"), ("cosine", "tau_1"))
                ]
                for name in ("forward_kl", "reverse_kl")
            }
            if taus and all(v is not None for pairs_of in found.values() for row in pairs_of for v in row):
                said.append(_sentence(pair if len(pairs) > 1 else "", mode, taus, found))
    return said


def _sentence(pair: str, mode: str, taus: list[float], found: dict[str, Any]) -> str:
    at = " and ".join(f"{tau:g}" for tau in taus)
    (fkl, fkl_turn), (rkl, rkl_turn) = found["forward_kl"], found["reverse_kl"]
    lifted = [" and ".join(f"x{value:.3g}" for value in values) for values in (fkl, rkl)]
    turned = [" and ".join(f"{value:.2f}" for value in values) for values in (fkl_turn, rkl_turn)]
    whom = f"{pair + ': ' if pair else ''}{MODES[mode].capitalize()}"
    return (
        f"{whom}, from tau 1 to {at}, forward KL lifts what is outside the teacher's top 10 by {lifted[0]} and "
        f"reverse KL by {lifted[1]}: {fkl[-1] / rkl[-1]:.2g} times as much at tau {taus[-1]:g}. Their cosines with "
        f"themselves at tau 1 are {turned[0]} and {turned[1]}."
    )


def _over_tau(
    values: Values, mode: str, measure: str, buckets: dict[str, str], y: str, only: list[str] | None
) -> Panel:
    found = [key for key in values if key[1] == mode and key[3] == measure]
    taus = sorted({tau for _, _, tau, _, _ in found})
    lines = []
    for objective in only or dict.fromkeys(key[0] for key in found):
        style = style_of(Series(objective, objective))
        for number, (bucket, title) in enumerate(buckets.items()):
            x = [tau for tau in taus if (objective, mode, tau, measure, bucket) in values]
            if x:
                name = "forward and reverse KL" if only else f"{objective}, {title}" if title else objective
                points = [values[objective, mode, tau, measure, bucket] for tau in x]
                lines.append(Line(name, x, points, style.colour, DASHES[number], style.symbol))
    return Panel(MODES[mode], lines, "tau", y, taus)


def _first_rank(bucket: str) -> int:
    return int(bucket.split("-")[0])


def _histograms(values: Values, modes: list[str], key: str, of: str) -> Figure | None:
    """Probability by the teacher's ranks, for teacher and student."""
    taus = sorted({tau for _, mode, tau, measure, _ in values if mode in modes and measure == "teacher_mass"})
    panels = []
    for mode in modes:
        for side in ("teacher", "student"):
            measure = f"{side}_mass"
            buckets = sorted({k[4] for k in values if k[1] == mode and k[3] == measure}, key=_first_rank)
            lines = [
                Line(f"tau {tau:g}", buckets, points, tau_colour(tau, taus), bars=True)
                for tau in taus
                if len(points := [values[k] for b in buckets if (k := ("-", mode, tau, measure, b)) in values])
                == len(buckets)
            ]
            panels.append(Panel(f"{side}; {MODES[mode]}", lines, "teacher's rank", "probability"))
    if not any(panel.lines for panel in panels):
        return None
    return Figure(
        key,
        "Where the probability is" + of,
        "Mass of the softened distributions by the rank that the teacher gives a token.",
        panels,
        png=("",),
    )
