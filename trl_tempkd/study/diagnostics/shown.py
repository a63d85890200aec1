# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The measures as tables on a screen."""

import math
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from .logits import Plan


SOFTENED = {"both": "both softened", "teacher": "teacher softened"}

# Of what -> the title of a column -> its measure, bucket and format
COLUMNS = {
    "logits": {
        "out 1": ("mass_outside", "top_1", ".2f"),
        "out 10": ("mass_outside", "top_10", ".2f"),
        "out 100": ("mass_outside", "top_100", ".2f"),
        "tokens": ("effective_tokens", "-", ".0f"),
        "cos 1": ("cosine", "tau_1", ".2f"),
        "cos d": ("cosine", "difference", ".2f"),
        "cos RKL": ("cosine", "reverse_kl", ".2f"),
        "norm": ("norm_ratio", "tau2", ".2f"),
    },
    "parameters": {
        "cos 1": ("parameter_cosine", "tau_1", ".2f"),
        "cos d": ("parameter_cosine", "difference", ".2f"),
        "cos RKL": ("parameter_cosine", "reverse_kl", ".2f"),
        "norm": ("parameter_norm_ratio", "tau2", ".2f"),
        "clipped": ("clip_rate", "tau2", ".2f"),
    },
}

# Of the line that docs/results/study_dial.md has: the log of the student's entropy at tau 2 less that at tau 1 is
# -(INTERCEPT + SLOPE log(ratio)), off by ERROR on teachers that it hasn't seen, by up to OTHER_PAIR on another pair
INTERCEPT, SLOPE, ERROR, OTHER_PAIR = -0.222, 0.182, 0.08, 0.11
PREDICTED, LOWEST, HIGHEST = ("forward_kl", "reverse_kl"), 1.7, 150.0  # what it was measured on


def lifted(rows: list[dict[str, Any]]) -> str:
    """What tau 2 lifts outside the teacher's top 10, and how sharp that makes a student; empty if not measured."""
    ratios = {
        row["objective"]: row["value"]
        for row in rows
        if (row["mode"], row["tau"], row["measure"], row["bucket"]) == ("both", 2.0, "lifted_ratio", "top_10")
    }
    if not ratios:
        return ""
    said = ", ".join(f"{name} x{ratio:.1f}" for name, ratio in ratios.items())
    sentence = f"With both softened, tau 2 raises what is lifted outside the teacher's top 10: {said}."
    sharper = [
        f"{math.exp(-INTERCEPT - SLOPE * math.log(ratios[name])):.2f} ({name})"
        for name in PREDICTED
        if LOWEST <= ratios.get(name, 0) <= HIGHEST
    ]
    if sharper:
        sentence += (
            f" By what two small pairs did, a student's entropy at tau 2 is then {' and '.join(sharper)} of that at "
            f"tau 1, give or take {OTHER_PAIR:.0%} of those, and further from 1 with the one larger pair that was "
            "tried: below 1 it is sharper, not better (docs/diagnostics.md)."
        )
    return sentence


def tables(rows: list[dict[str, Any]], plan: Plan) -> list[Table]:
    """What matters most of the measures, for each mode a table, and one more of the parameters."""
    values = {tuple(row.values())[:5]: row["value"] for row in rows}
    measured = {row["measure"] for row in rows}
    result = []
    for of, columns in COLUMNS.items():
        if not {measure for measure, _, _ in columns.values()} <= measured:
            continue
        for mode in plan.modes:
            title = f"Gradient in the {of}, {SOFTENED[mode]}"
            table = Table("objective", "tau", title=title, box=SIMPLE, padding=0)
            table.columns[0].no_wrap = True
            for column in columns:
                table.add_column(column, justify="right")
            for name in plan.objectives:
                for tau in plan.temperatures:
                    cells = ((values.get((name, mode, tau, *key)), form) for *key, form in columns.values())
                    texts = ("" if value is None else format(value, form) for value, form in cells)
                    table.add_row(name, f"{tau:g}", *texts)
                table.add_section()
            result.append(table)
    return result
