# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Claim B: what forward KL, reverse KL and AKL fit first, and where they end (arXiv 2404.02657)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..evaluation import bootstrap_interval
from .study import Condition, Study, Verdict, conditions_of, describe, evidence, judge, studies


FKL, RKL, AKL = "forward_kl", "reverse_kl", "adaptive_kl"
TITLES = {
    "B1": "Early in training, forward KL fits the head of the distribution and reverse KL the tail.",
    "B2": "With enough epochs, forward and reverse KL reach the same.",
    "B3": "In few epochs, AKL is ahead of forward and reverse KL.",
    "B4": "AKL's answers are more diverse than those of forward and reverse KL.",
}


def claims_b(results: Sequence[dict[str, Any]], baselines: dict[str, dict[str, Any]]) -> list[Verdict]:
    """The verdicts on claim B, from the cells at tau 1. Few and many epochs are the grid's `max_steps`."""
    found = [study for study in studies(results) if study.find(FKL, 1.0) and study.find(RKL, 1.0)]
    found.sort(key=lambda study: steps_of(study))
    if not found or (found[0].find(AKL, 1.0) is None and len(found) < 2):
        return []
    conditions = [conditions_of(study, baselines.get(study.results()[0].get("baseline", ""), {})) for study in found]
    few, many = found[0], found[-1]
    verdicts = [first_fit(many, conditions[-1])]
    if steps_of(few) < steps_of(many):
        verdicts.append(same_end(few, many, conditions[-1]))
    return verdicts + [
        adaptive(key, few, scores, conditions[0])
        for key, scores in (("B3", ("rouge_l", "rouge_l_greedy", "kl_tau1")), ("B4", ("self_bleu",)))
        if few.find(AKL, 1.0) is not None
    ]


def steps_of(study: Study) -> float:
    return max(entry.get("step", 0) for result in study.results() for entry in result["log_history"])


def first_fit(study: Study, conditions: dict[str, Any]) -> Verdict:
    """Of the errors in head and tail before training, which share is gone when they are measured first."""
    gone = {name: [fitted(result) for result in seeds_of(study, name)] for name in (FKL, RKL)}
    if not all(gone.values()) or not all(value for values in gone.values() for value in values):
        sentence = "Nothing was measured while the students trained: set kd_diagnostics_steps in `overrides`."
        return Verdict("B", "B1", None, TITLES["B1"], "not tested", sentence, [], conditions)
    # How much more of the head than of the tail is gone: forward KL's less reverse KL's, seed by seed
    preference = {name: [v["head"] - v["tail"] for v in values if v] for name, values in gone.items()}
    difference = np.subtract(preference[FKL], preference[RKL])
    low, high = bootstrap_interval(difference.tolist()) if len(difference) > 1 else (np.nan, np.nan)
    outcome = "supported" if low > 0 else "contradicted" if high < 0 else "not supported"
    if len(difference) < 3:  # an interval over two seeds is no more than the two of them
        outcome = "not supported"
    mean = {
        name: {part: np.mean([v[part] for v in vs if v]) for part in ("head", "tail")} for name, vs in gone.items()
    }
    step = next(v["step"] for v in gone[FKL] if v)
    sentence = (
        f"After {step:.0f} steps, forward KL had removed {mean[FKL]['head']:.1%} of the error abs(p - q) in the head "
        f"and {mean[FKL]['tail']:.1%} in the tail, reverse KL {mean[RKL]['head']:.1%} and {mean[RKL]['tail']:.1%}. "
        f"Forward KL's preference for the head is larger by {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}], "
        f"{len(difference)} seeds{', too few to decide' if len(difference) < 3 else ''}."
    )
    row: dict[str, Any] = {"label": "preference for the head, reverse KL to forward KL", "score": "share of the error"}
    row |= {"difference": float(difference.mean()), "low": low, "high": high}
    row |= {"p": None, "n_seeds": len(difference), "n_items": 1}
    return Verdict("B", "B1", None, TITLES["B1"], outcome, sentence, [row], conditions)


def seeds_of(study: Study, divergence: str) -> list[dict[str, Any]]:
    condition, other = study.find(divergence, 1.0), study.find(RKL if divergence == FKL else FKL, 1.0)
    assert condition is not None and other is not None
    return [result for seed, result in sorted(condition.seeds.items()) if seed in other.seeds]


def fitted(result: dict[str, Any]) -> dict[str, float] | None:
    """Which share of the errors at the start is gone at the first measurement after it."""
    rows = [r for r in result.get("diagnostics") or [] if r["measure"] == "error"]
    steps = sorted({r["step"] for r in rows})
    if len(steps) < 2:
        return None
    error = {(r["step"], r["bucket"]): r["value"] for r in rows}
    found = {part: 1 - error[(steps[1], part)] / error[(steps[0], part)] for part in ("head", "tail")}
    return {"step": steps[1], **found}


def same_end(few: Study, many: Study, conditions: dict[str, Any]) -> Verdict:
    """Whether the two KLs differ less after many steps than after few, and how much is left."""
    rows = [
        {**found, "label": f"{found['label']}, {steps_of(study):.0f} steps"}
        for score in ("kl_tau1", "rouge_l", "rouge_l_greedy")
        for study in (many, few)
        if (found := between(study, score)) is not None
    ]
    last, first = (
        next(r for r in rows if r["score"] == "kl_tau1" and r["label"].endswith(f" {steps_of(s):.0f} steps"))
        for s in (many, few)
    )
    apart = judge(last) != "not supported"
    nearer = abs(last["difference"]) < abs(first["difference"])
    outcome = "supported" if not apart else "contradicted" if not nearer else "not supported"
    sentence = (
        f"{describe(last)}; {describe(first)}. "
        + ("The two can't be told apart at the end." if not apart else "They still differ at the end")
        + ("" if not apart else ", by less than early on." if nearer else ", by no less than early on.")
    )
    return Verdict(
        "B", "B2", None, TITLES["B2"], outcome, sentence, [last, *(r for r in rows if r is not last)], conditions
    )


def between(study: Study, score: str) -> dict[str, Any] | None:
    first, second = study.find(FKL, 1.0), study.find(RKL, 1.0)
    assert first is not None and second is not None
    return evidence(first, second, score)


def adaptive(key: str, study: Study, scores: Sequence[str], conditions: dict[str, Any]) -> Verdict:
    """AKL against both KLs; the first score decides, and AKL must be ahead of both."""
    own = study.find(AKL, 1.0)
    others = [study.find(name, 1.0) for name in (FKL, RKL)]
    assert isinstance(own, Condition) and all(others)
    rows = [
        found for score in scores for other in others if other and (found := evidence(other, own, score)) is not None
    ]
    deciding = [r for r in rows if r["score"] == scores[0]]
    if len(deciding) < 2:
        return Verdict("B", key, None, TITLES[key], "not tested", f"No cells have {scores[0]}.", [], conditions)
    outcomes = [judge(r) for r in deciding]
    outcome = (
        "supported"
        if set(outcomes) == {"supported"}
        else "contradicted"
        if set(outcomes) == {"contradicted"}
        else "not supported"
    )
    sentence = "; ".join(describe(r) for r in deciding) + "."
    return Verdict("B", key, None, TITLES[key], outcome, sentence, rows, conditions)
