# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The conditions of a sweep by name, and how one does against another on items that it was not chosen by."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..statistics import compare
from .comparisons import paired, table_of
from .scores import LOWER_IS_BETTER, digits, kind, label


# The papers' score; the same without the randomness of sampling, which a sharper student profits from; the distance
SCORES = ("rouge_l", "rouge_l_greedy", "kl_tau1")


@dataclass(frozen=True)
class Verdict:
    """
    What a sweep says of one claim.

    Args:
        claim (`str`):
            `"A"` (arXiv 2606.00306) or `"B"` (arXiv 2404.02657).
        key (`str`):
            The part of the claim, as `"A1"`.
        mode (`str` or `None`):
            Whom the temperature softens, `None` where it makes no difference.
        title (`str`):
            The claim as a sentence.
        outcome (`str`):
            `"supported"`, `"contradicted"` (the opposite is clear), `"not supported"` (neither is) or `"not tested"`.
        sentence (`str`):
            What was found, in plain words.
        evidence (`list[dict[str, Any]]`):
            Comparisons, the deciding one first: `label`, `score`, `difference` with `low` and `high`, `p`, `n_seeds`,
            `n_items`. Differences are of the score itself, second less first.
        conditions (`dict[str, Any]`):
            What else the verdict depends on: how peaked the teacher is, where the student starts, steps.
    """

    claim: str
    key: str
    mode: str | None
    title: str
    outcome: str
    sentence: str
    evidence: list[dict[str, Any]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)


def name_of(divergence: Any) -> str:
    """`"jsd"`, or `"jsd(beta=0.1)"` for one with parameters. A rule or another factor likewise."""
    if not isinstance(divergence, dict):
        return str(divergence)
    [(name, kwargs)] = divergence.items()
    return f"{name}({', '.join(f'{key}={value}' for key, value in kwargs.items())})"


@dataclass(frozen=True)
class Condition:
    """Cells that differ in their seed alone."""

    divergence: str
    tau: float
    mode: str
    seeds: dict[Any, dict[str, Any]]

    @property
    def label(self) -> str:
        return f"{self.divergence} at tau {self.tau:g}"


class Study:
    """
    Conditions that differ in divergence, tau and mode alone.

    Args:
        conditions (`Iterable[Condition]`):
            The conditions.
        factors (`dict[str, Any]`):
            What they share of the grid's other factors.
    """

    def __init__(self, conditions: Iterable[Condition], factors: dict[str, Any]):
        self.conditions = list(conditions)
        self.factors = factors

    def find(self, divergence: str, tau: float, mode: str | None = None) -> Condition | None:
        for condition in self.conditions:
            if (condition.divergence, condition.tau) == (divergence, tau) and mode in (None, condition.mode):
                return condition
        return None

    def of(self, divergence: str, mode: str) -> list[Condition]:
        """The conditions of a divergence, by tau."""
        found = [c for c in self.conditions if c.divergence == divergence and c.mode == mode]
        return sorted(found, key=lambda condition: condition.tau)

    @property
    def modes(self) -> list[str]:
        return sorted({condition.mode for condition in self.conditions})

    def divergences(self, mode: str) -> list[str]:
        return list(dict.fromkeys(c.divergence for c in self.conditions if c.mode == mode))

    def results(self) -> list[dict[str, Any]]:
        return [result for condition in self.conditions for result in condition.seeds.values()]


def studies(results: Sequence[dict[str, Any]]) -> list[Study]:
    """The conditions of a sweep, apart by the grid's other factors, such as `max_steps`."""
    found: dict[str, list[Condition]] = {}
    for text, seeds in table_of(list(results)).items():
        factors = json.loads(text)
        divergence, tau, mode = (factors.pop(name) for name in ("divergence", "tau", "mode"))
        condition = Condition(name_of(divergence), float(tau), mode, seeds)
        found.setdefault(json.dumps(factors), []).append(condition)
    return [Study(conditions, json.loads(factors)) for factors, conditions in found.items()]


def conditions_of(study: Study, baseline: dict[str, Any]) -> dict[str, Any]:
    """What a verdict depends on beside what it compares."""
    options = study.results()[0]["settings"].get("options", {})
    found: dict[str, Any] = {name: value for name, value in study.factors.items() if value is not None}
    if baseline:
        teacher = baseline["teacher"]
        found["teacher"] = options.get("teacher_model_name_or_path", teacher["name"])
        found["student starts from"] = options.get("model_name_or_path", baseline["start"]["name"])
        for key, where in (("train", "training rows"), ("held_out", "held-out rows")):
            peaked = teacher[key]
            found[f"teacher on {where}"] = (
                f"mean top-1 {peaked['top_1']:.2f}, entropy {peaked['teacher_entropy']:.2f} nats"
            )
    for name in ("max_steps", "num_train_epochs", "per_device_train_batch_size", "learning_rate"):
        if name in options and name not in found:
            found[name] = options[name]
    return found


def better(score: str, difference: float) -> float:
    """A difference with the sign turned where less is better."""
    return -difference if kind(score) in LOWER_IS_BETTER else difference


def evidence(first: Condition, second: Condition, score: str, items: str = "all") -> dict[str, Any] | None:
    """
    Compare two conditions on a score, `None` where there is nothing to compare.

    Args:
        items (`str`):
            `"all"`, or `"test"` for those that [`best`] does not choose by.
    """
    values = paired(first.seeds, second.seeds, score)
    if values is None:
        return None
    part = slice(None) if items == "all" else slice(1, None, 2)
    return row(f"{first.label} to {second.label}", score, *(value[:, part] for value in values))


def row(label: str, score: str, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """A comparison as a row of evidence. Its p-value is of these very students on other items."""
    found = asdict(compare(first, second))
    names = ("difference", "low", "high", "n_seeds", "n_items")
    return {"label": label, "score": score, **{name: found[name] for name in names}, "p": found["p_items"]}


def best(conditions: Sequence[Condition], score: str) -> Condition:
    """
    The condition with the best mean, on every second item: the others are left to test it on, since the best of
    several looks better than it is on what it was chosen by.
    """

    def mean(condition: Condition) -> float:
        values = [np.mean(result["scores"][score], axis=0)[::2] for result in condition.seeds.values()]
        return better(score, float(np.mean(values)))

    return max(conditions, key=mean)


def judge(found: dict[str, Any]) -> str:
    """Whether the second of two conditions is better, by the interval of the difference."""
    low, high = sorted(better(found["score"], found[end]) for end in ("low", "high"))
    return "supported" if low > 0 else "contradicted" if high < 0 else "not supported"


def describe(found: dict[str, Any]) -> str:
    """A row of evidence in words."""
    values = (f"{found[key]:+.{digits(found['score'])}f}" for key in ("difference", "low", "high"))
    return "{}: {} {} [{}, {}], {} seeds x {} items".format(
        found["label"], label(found["score"]), *values, found["n_seeds"], found["n_items"]
    )
