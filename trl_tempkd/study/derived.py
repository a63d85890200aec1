# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Scores of a cell that follow from what was measured while it trained, or before any training."""

import math
from collections.abc import Iterable
from typing import Any

from . import diversity
from .table import name_of


HEAD_FIRST, LIFTED = "head_first", "lifted_outside_top_10"


def with_derived(
    results: Iterable[dict[str, Any]], baselines: dict[str, dict[str, Any]], wanted: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """
    The cells with more scores, where they were measured.

    `head_first` is of a run: which share of the error abs(p - q) at the start is gone in the teacher's head at the
    first measurement after it, less that in the tail. `lifted_outside_top_10` is of a row of the training split,
    before any training: the log of the upward gradient outside the teacher's top 10, relative to tau 1. Of the
    `wanted` names, `rouge_l_at_self_bleu_20` and its like are read off the curve of a cell that was sampled at several
    temperatures.
    """
    found, wanted = [], set(wanted)
    for result in results:
        scores = {**_head_first(result), **_lifted(result, baselines.get(result.get("baseline", ""), {}))}
        scores |= _at_equal_diversity(result, wanted)
        found.append({**result, "scores": {**result["scores"], **scores}})
    return found


def _at_equal_diversity(result: dict[str, Any], wanted: Iterable[str]) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {}
    for name in wanted:
        for prefix, measure in ((diversity.SCORE, "rouge_l"), (diversity.LENGTH, "length")):
            if name.startswith(prefix):
                values = diversity.read_off(result.get("curve") or [], float(name.removeprefix(prefix)), measure)
                found |= {} if values is None else {name: [values]}
    return found


def _head_first(result: dict[str, Any]) -> dict[str, list[list[float]]]:
    rows = [row for row in result.get("diagnostics") or [] if row["measure"] == "error"]
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        return {}
    error = {(row["step"], row["bucket"]): row["value"] for row in rows}
    if not all(error[(steps[0], part)] > 0 for part in ("head", "tail")):  # neither 0 nor NaN
        return {}
    gone = {part: 1 - error[(steps[1], part)] / error[(steps[0], part)] for part in ("head", "tail")}
    return {HEAD_FIRST: [[gone["head"] - gone["tail"]]]}


def _lifted(result: dict[str, Any], baseline: dict[str, Any]) -> dict[str, list[list[float]]]:
    factors = result["settings"]["factors"]
    name, mode, tau = name_of(factors["divergence"]), factors["mode"], float(factors["tau"])
    amounts = {(row["objective"], row["mode"], row["tau"]): row["values"] for row in baseline.get("lifted") or []}
    own, at_1 = (amounts.get((name, mode, each)) for each in (tau, 1.0))
    if not own or not at_1 or not all(value > 0 for value in (*own, *at_1)):
        return {}
    return {LIFTED: [[math.log(a / b) for a, b in zip(own, at_1, strict=True)]]}
