# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The claims of two papers, put to the results of a sweep.

A: "Rethinking the Role of Temperature in Large Language Model Distillation" (arXiv 2606.00306).
B: "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models" (arXiv 2404.02657).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .akl_claims import claims_b
from .comparisons import paired
from .scores import label
from .study import (
    SCORES,
    Condition,
    Study,
    Verdict,
    best,
    better,
    conditions_of,
    describe,
    evidence,
    judge,
    row,
    studies,
)


__all__ = ["Verdict", "verdicts"]

FKL, RKL = "forward_kl", "reverse_kl"
SOFTENED = {"both": "both sides softened", "teacher": "the teacher alone softened"}
# A gradient has turned, or moved to the tail, by more than this: a choice, there is no interval to go by
CLEAR = 0.1


def verdicts(results: Sequence[dict[str, Any]], baselines: dict[str, dict[str, Any]]) -> list[Verdict]:
    """
    What a sweep says of each claim.

    Args:
        results (`Sequence[dict[str, Any]]`):
            The files of its finished cells.
        baselines (`dict[str, dict[str, Any]]`):
            Its `summary/baselines/KEY.json` by KEY.

    Returns:
        `list[Verdict]`: By claim. Where the grid has more factors than divergence, tau, mode and seed, for each
        combination of these.
    """
    found: list[Verdict] = []
    for study in studies(results):
        baseline = baselines.get(study.results()[0].get("baseline", ""), {})
        conditions = conditions_of(study, baseline)
        if study.find(FKL, 1.0) is None or study.find(RKL, 1.0) is None:
            continue
        found.append(reverse_ahead_at_tau_1(study, conditions))
        for mode in study.modes if any(condition.tau > 1 for condition in study.conditions) else []:
            found += overtaken(study, mode, conditions)
            found += family(study, mode, conditions)
        found += [asymmetry(baseline["diagnostics"], mode, conditions) for mode in SOFTENED if has_gradients(baseline)]
    return sorted(found + claims_b(results, baselines), key=lambda verdict: verdict.key)


def reverse_ahead_at_tau_1(study: Study, conditions: dict[str, Any]) -> Verdict:
    forward, reverse = study.find(FKL, 1.0), study.find(RKL, 1.0)
    assert forward is not None and reverse is not None
    rows = [found for score in SCORES if (found := evidence(forward, reverse, score)) is not None]
    title = "At tau 1, reverse KL is ahead of forward KL."
    return decided("A1", None, title, rows, conditions)


def overtaken(study: Study, mode: str, conditions: dict[str, Any]) -> list[Verdict]:
    """What a higher tau does to forward KL, against reverse KL and against itself at tau 1."""
    forward = [condition for condition in study.of(FKL, mode) if study.find(RKL, condition.tau, mode)]
    titles = {
        "A2": "At some higher tau, forward KL is ahead of reverse KL.",
        "A3": "A higher tau helps forward KL.",
        "A4": "A higher tau helps forward KL more than reverse KL.",
        "A8": "Each at its best tau, forward KL is ahead of reverse KL.",
    }
    score = next((name for name in SCORES if forward and has(forward, name)), None)
    if len(forward) < 2 or score is None:
        return [untested(key, mode, title, conditions) for key, title in titles.items()]
    reverse = [other for c in forward if (other := study.find(RKL, c.tau, mode)) is not None]
    pairs = dict(zip((c.tau for c in forward), zip(reverse, forward, strict=True), strict=True))
    # Where forward KL gains most on reverse KL, chosen on half of the items and tested on the others
    tau = max((tau for tau in pairs if tau > 1), key=lambda tau: lead(*pairs[tau], score))
    ahead = [evidence(*pairs[tau], score, "test")]
    ahead += [evidence(*pairs[t], name) for name in SCORES for t in pairs if t > 1]

    top, top_reverse = (best([c for c in group if c.tau > 1], score) for group in (forward, reverse))
    helped = [evidence(forward[0], top, score, "test")]
    helped += [evidence(forward[0], c, name) for name in SCORES for c in forward[1:]]
    more = [
        more_help((forward[0], top), (reverse[0], top_reverse), name, part)
        for name, part in ((score, slice(1, None, 2)), *((name, slice(None)) for name in SCORES))
    ]
    tops = best(reverse, score), best(forward, score)
    at_best = [evidence(*tops, score, "test"), *(evidence(*tops, name) for name in SCORES)]
    return [
        decided(key, mode, titles[key], present(rows), conditions)
        for key, rows in (("A2", ahead), ("A3", helped), ("A4", more), ("A8", at_best))
    ]


def present(rows: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    return [found for found in rows if found is not None]


def lead(first: Condition, second: Condition, score: str) -> float:
    values = paired(first.seeds, second.seeds, score)
    return -np.inf if values is None else better(score, float((values[1] - values[0])[:, ::2].mean()))


def more_help(
    forward: tuple[Condition, Condition], reverse: tuple[Condition, Condition], score: str, part: slice
) -> dict[str, Any] | None:
    """The change of reverse KL against that of forward KL."""
    if paired(reverse[0].seeds, forward[0].seeds, score) is None:  # other starts, batches or items
        return None
    shared = set.intersection(*(set(condition.seeds) for condition in (*forward, *reverse)))
    changes = []
    for pair in (reverse, forward):
        first, second = ({seed: c.seeds[seed] for seed in c.seeds if seed in shared} for c in pair)
        values = paired(first, second, score)
        if values is None:
            return None
        changes.append((values[1] - values[0])[:, part])
    if changes[0].shape != changes[1].shape:
        return None
    names = [f"{first.label} to {second.tau:g}" for first, second in (reverse, forward)]
    return row(f"change of {names[1]}, less that of {names[0]}", score, *changes)


def family(study: Study, mode: str, conditions: dict[str, Any]) -> list[Verdict]:
    """What a higher tau does to the other divergences, and whether plain KL keeps up with them."""
    titles = {
        "A6": "A higher tau helps a broader family of objectives.",
        "A7": "At its best tau, plain KL keeps up with the best of the other objectives.",
    }
    others = [name for name in study.divergences(mode) if name not in (FKL, RKL)]
    groups = [group for name in others if len(group := study.of(name, mode)) > 1 and group[0].tau == 1]
    score = next((name for name in SCORES if groups and has([c for g in groups for c in g], name)), None)
    if score is None:
        return [untested(key, mode, title, conditions) for key, title in titles.items()]
    rows = present([evidence(group[0], best(group[1:], score), score, "test") for group in groups])
    rows.sort(key=lambda r: -better(score, r["difference"]))
    outcomes = [judge(r) for r in rows]
    helped, hurt = outcomes.count("supported"), outcomes.count("contradicted")
    outcome = "supported" if 2 * helped > len(rows) else "contradicted" if 2 * hurt > len(rows) else "not supported"
    sentence = (
        f"Of {len(rows)} other objectives, {helped} gain in {label(score)} at their best tau above 1 with an interval "
        f"above zero, and {hurt} lose. Supported means that more than half gain."
    )
    found = [Verdict("A", "A6", mode, titles["A6"], outcome, sentence, rows, conditions)]
    plain = best([c for name in (FKL, RKL) for c in study.of(name, mode)], score)
    other = best([c for group in groups for c in group], score)
    rows = present([evidence(other, plain, score, "test"), *(evidence(other, plain, name) for name in SCORES)])
    if not rows:
        return [*found, untested("A7", mode, titles["A7"], conditions)]
    outcome = "supported" if judge(rows[0]) != "contradicted" else "contradicted"
    sentence = f"{describe(rows[0])}. It keeps up unless the interval says that it is behind."
    return [*found, Verdict("A", "A7", mode, titles["A7"], outcome, sentence, rows, conditions)]


def has(conditions: Sequence[Condition], score: str) -> bool:
    return all(score in result["scores"] for condition in conditions for result in condition.seeds.values())


def has_gradients(baseline: dict[str, Any]) -> bool:
    return bool(baseline.get("diagnostics"))


def asymmetry(rows: list[dict[str, Any]], mode: str, conditions: dict[str, Any]) -> Verdict:
    """What tau does to the two gradients before training, at the highest tau up to 4."""
    values = {(r["objective"], r["mode"], r["tau"], r["measure"], r["bucket"]): r["value"] for r in rows}
    tau = max(r["tau"] for r in rows if r["mode"] == mode and r["tau"] <= 4)

    def of(objective: str, at: float, measure: str, bucket: str) -> float:
        return values[(objective, mode, at, measure, bucket)]

    moved, turned = {}, {}
    for name in (FKL, RKL):
        moved[name] = of(name, tau, "mass_outside", "top_10") - of(name, 1.0, "mass_outside", "top_10")
        turned[name] = of(name, tau, "cosine", "tau_1")
    more_tail, keeps = moved[FKL] - moved[RKL] > CLEAR, turned[RKL] > 1 - CLEAR
    outcome = "supported" if more_tail and keeps else "not supported"
    sentence = (
        f"From tau 1 to {tau:g}, the share of forward KL's gradient outside the teacher's ten likeliest tokens "
        f"changes by {moved[FKL]:+.2f} and that of reverse KL's by {moved[RKL]:+.2f}; their cosines with themselves "
        f"at tau 1 are {turned[FKL]:.2f} and {turned[RKL]:.2f}. "
        + ("Forward KL alone moves to the tail. " if more_tail else "Forward KL moves little more than reverse KL. ")
        + ("Reverse KL keeps its direction." if keeps else "Reverse KL turns too, so that it isn't rescaled only.")
        + f" One measurement, before training, on {rows[0]['tokens']} tokens of training rows."
    )
    title = "Tau moves forward KL's gradient to non-dominant tokens, and mainly rescales reverse KL's."
    return Verdict("A", "A5", mode, title, outcome, sentence, [], conditions)


def decided(key: str, mode: str | None, title: str, rows: list[dict[str, Any]], conditions: dict[str, Any]) -> Verdict:
    """The verdict of the first of these comparisons."""
    if not rows:
        return untested(key, mode, title, conditions)
    others = [r for r in rows[1:] if r["score"] != rows[0]["score"]]
    agreeing = sum(judge(r) == judge(rows[0]) for r in others)
    sentence = f"{describe(rows[0])}."
    if others:
        sentence += f" Of {len(others)} comparisons by other scores, {agreeing} say the same."
    return Verdict("A", key, mode, title, judge(rows[0]), sentence, rows, conditions)


def untested(key: str, mode: str | None, title: str, conditions: dict[str, Any]) -> Verdict:
    sentence = "The sweep has no cells for it that share a seed, a start, batches and items."
    return Verdict(key[0], key, mode, title, "not tested", sentence, [], conditions)
