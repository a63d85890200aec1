# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The verdicts as the page shows them: by claim, with the conditions that all share said once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..sweep.claims import Verdict


PAPERS = {
    "A": "Rethinking the Role of Temperature in Large Language Model Distillation (arXiv 2606.00306)",
    "B": "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for LLMs (arXiv 2404.02657)",
}


@dataclass(frozen=True)
class Claim:
    """The verdicts on one claim: of each mode, and of each combination of what else the grid varies."""

    claim: str
    key: str
    title: str
    verdicts: list[Verdict]

    def of_mode(self, mode: str | None) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.mode == mode]


def by_claim(verdicts: Sequence[Verdict]) -> list[Claim]:
    found: dict[str, Claim] = {}
    for verdict in verdicts:
        claim = Claim(verdict.claim, verdict.key, verdict.title, [])
        found.setdefault(verdict.key, claim).verdicts.append(verdict)
    return list(found.values())


def shared_conditions(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The conditions that every verdict has."""
    every = [verdict.conditions for verdict in verdicts if verdict.conditions]
    first = every[0] if every else {}
    return {name: value for name, value in first.items() if all(each.get(name) == value for each in every)}


def conditions_beside(verdict: Verdict, shared: dict[str, Any]) -> dict[str, Any]:
    """The conditions of a verdict that not all have."""
    return {name: value for name, value in verdict.conditions.items() if name not in shared}


def whiskers(evidence: Sequence[dict[str, Any]]) -> list[dict[str, float] | None]:
    """
    Where each interval lies on a line of 0 to 100, on one scale for the rows of one score, with the place of 0. `None`
    where there is no interval.
    """
    known = [math.isfinite(row["low"]) and math.isfinite(row["high"]) for row in evidence]
    scales: dict[str, tuple[float, float]] = {}
    for row, drawn in zip(evidence, known, strict=True):
        if drawn:
            low, high = scales.get(row["score"], (0.0, 0.0))
            scales[row["score"]] = (min(low, row["low"]), max(high, row["high"]))

    def place(row: dict[str, Any]) -> dict[str, float]:
        low, high = scales[row["score"]]
        values = {"low": row["low"], "high": row["high"], "at": row["difference"], "zero": 0.0}
        return {name: round(4 + 92 * (value - low) / ((high - low) or 1.0), 2) for name, value in values.items()}

    return [place(row) if drawn else None for row, drawn in zip(evidence, known, strict=True)]
