# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What the finished cells of a sweep decide of the hypotheses that its recipe has declared.

Every condition that is looked at counts: "some" is tested by Bonferroni's correction over all of them, "every" by the
least clear of them, so nothing is chosen on the data that it is tested on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .declared import Hypothesis, quantified
from .scores import digits, direction, label
from .statistics import Estimate, at_least, estimate, holm
from .table import Cells, name_of, paired


LEVEL = 0.05  # two-sided, over a page
FEWEST_SEEDS = 3  # with fewer, runs that differ by chance alone decide too often
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
TOO_FEW, UNTESTED = "too few runs", "not tested"
OUTCOMES = (SUPPORTED, CONTRADICTED, UNDECIDED, TOO_FEW, UNTESTED)


@dataclass(frozen=True)
class Evidence:
    """A paired difference of two conditions: `a` less `b`, or the change of the one less that of the other."""

    text: str
    score: str
    estimate: Estimate

    @property
    def sentence(self) -> str:
        return f"{self.text}: {difference_of(self.estimate, self.score)}"


# One-sided p-values for a claim and against it, and what they rest on
Weighed = tuple[Any, Any, list[Evidence]]


@dataclass(frozen=True)
class Decision:
    """
    What the cells of a sweep say of a hypothesis in one setting.

    Args:
        hypothesis ([`Hypothesis`]):
            The hypothesis.
        setting (`dict[str, Any]`):
            The factors that it doesn't name and that vary.
        outcome (`str`):
            One of `OUTCOMES`.
        sentence (`str`):
            Why, in words and numbers.
        p, p_holm (`float`, *optional*):
            Two-sided p-value, and after Holm's correction over the page.
        evidence (`list[Evidence]`):
            What it rests on, the deciding one first.
        agree, contradict (`list[str]`):
            Other scores by which the same is clear, or the opposite.
    """

    hypothesis: Hypothesis
    setting: dict[str, Any]
    outcome: str
    sentence: str
    p: float | None = None
    p_holm: float | None = None
    evidence: list[Evidence] = field(default_factory=list)
    agree: list[str] = field(default_factory=list)
    contradict: list[str] = field(default_factory=list)


def decide(hypotheses: Sequence[Hypothesis], results: Sequence[dict[str, Any]]) -> list[Decision]:
    """
    Decide hypotheses on the finished cells of a sweep, with Holm's correction over all of them.

    Args:
        hypotheses (`Sequence[Hypothesis]`):
            Those of one page.
        results (`Sequence[dict[str, Any]]`):
            The files of the cells.

    Returns:
        `list[Decision]`: Those of a hypothesis together, one for each setting, in the order of the hypotheses.
    """
    cells = Cells(results)
    found = [each for hypothesis in hypotheses for each in _in_each_setting(hypothesis, cells)]
    corrected = holm([each.p for each in found])
    return [_with_correction(each, p) for each, p in zip(found, corrected, strict=True)]


def _with_correction(decision: Decision, p_holm: float | None) -> Decision:
    if decision.p is None or p_holm is None:
        return decision
    decided = decision.outcome if p_holm <= LEVEL else UNDECIDED
    beside = ""
    if decision.agree or decision.contradict:
        beside = (
            f" Of the other scores, {_listed(decision.agree)} agree and {_listed(decision.contradict)} contradict."
        )
    sentence = f"{decision.sentence} p = {p_holm:.2g} after Holm's correction.{beside}"
    return replace(decision, outcome=decided, sentence=sentence, p_holm=p_holm)


def _listed(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(label(name) for name in names)})" if names else "none"


def _in_each_setting(hypothesis: Hypothesis, cells: Cells) -> list[Decision]:
    named = {*hypothesis.a, *(hypothesis.b or {}), *hypothesis.change}
    found: dict[frozenset[str], Decision] = {}  # at tau 1 the modes are the same runs, and one decision
    for setting in cells.settings(named):
        contrast = Contrast(hypothesis, cells, setting)
        if (decision := contrast.decision()) is not None:
            found.setdefault(frozenset(contrast.used), decision)
    if found:
        return list(found.values())
    sentence = "The sweep has no finished cells for it that share a seed, a start, batches and items."
    return [Decision(hypothesis, {}, UNTESTED, sentence)]


@dataclass(frozen=True)
class _Level:
    """A factor of a side that has several values: how many of them must do."""

    side: str
    factor: str
    quantifier: str
    values: list[Any]


class Contrast:
    """A hypothesis in one setting."""

    def __init__(self, hypothesis: Hypothesis, cells: Cells, setting: dict[str, Any]):
        self.hypothesis, self.cells, self.setting = hypothesis, cells, setting
        self.levels: list[_Level] = []
        self.pooled: list[_Level] = []
        self.fixed: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
        for side, default in (("a", "some"), ("b", "every")):
            for factor, value in (getattr(hypothesis, side) or {}).items():
                quantifier, values = quantified(value, default)
                if quantifier is None:
                    self.fixed[side][factor] = value
                else:
                    levels = self.pooled if quantifier == "mean" else self.levels
                    levels.append(_Level(side, factor, quantifier, values))
        self.broken: list[str] = []
        self.used: set[str] = set()  # names of the cells that it was decided on

    def weigh(self, score: str) -> Weighed | None:
        """
        One-sided p-values for the claim and against it by a score, and what they rest on; `None` where there are no
        cells for it.
        """
        return self._weigh(self.levels, self.fixed, score)

    def decision(self) -> Decision | None:
        hypothesis, setting = self.hypothesis, self.setting
        weighed = self.weigh(hypothesis.score)
        if weighed is None:
            return None
        p_for, p_against, evidence = weighed
        few = min(each.estimate.n_seeds for each in evidence)
        if self.broken:
            sentence = f"{hypothesis.score} isn't finite in {', '.join(dict.fromkeys(self.broken))}."
            return Decision(hypothesis, setting, UNDECIDED, sentence, evidence=evidence)
        sentence = f"{evidence[0].sentence}."
        if len(evidence) > 1:
            sentence += f" {len(evidence)} comparisons were made."
        if few < FEWEST_SEEDS and hypothesis.trained:
            sentence += f" {FEWEST_SEEDS} seeds at least decide."
            return Decision(hypothesis, setting, TOO_FEW, sentence, evidence=evidence)
        outcome = SUPPORTED if p_for <= p_against else CONTRADICTED
        p = min(2 * min(p_for, p_against), 1.0)
        agree, contradict = self._other_scores()
        return Decision(hypothesis, setting, outcome, sentence, float(p), None, evidence, agree, contradict)

    def _other_scores(self) -> tuple[list[str], list[str]]:
        """Those by which the same claim is clear, or its opposite. They decide nothing."""
        agree, contradict = [], []
        if self.hypothesis.expect in ("greater", "less", "not_worse"):
            for score in self.cells.scores():
                if score != self.hypothesis.score and direction(score) and direction(self.hypothesis.score):
                    weighed = self.weigh(score)
                    if weighed is not None and weighed[0] <= LEVEL / 2:
                        agree.append(score)
                    elif weighed is not None and weighed[1] <= LEVEL / 2:
                        contradict.append(score)
        return agree, contradict

    def _weigh(self, levels: list[_Level], sides: dict[str, dict[str, Any]], score: str) -> Weighed | None:
        if not levels:
            return self._leaf(sides, score)
        first, *rest = levels
        parts: list[Weighed] = []
        for value in first.values:
            chosen = {**sides, first.side: {**sides[first.side], first.factor: value}}
            if (part := self._weigh(rest, chosen, score)) is not None:
                parts.append(part)
        if not parts:
            return None
        needed = {"some": 1, "most": len(parts) // 2 + 1, "every": len(parts)}[first.quantifier]
        p_for = at_least(needed, [part[0] for part in parts])
        p_against = at_least(len(parts) - needed + 1, [part[1] for part in parts])
        # First the part that the verdict hangs on, and then the others (a simulation weighs arrays of sweeps at once)
        side, at = (0, needed - 1) if np.min(p_for) <= np.min(p_against) else (1, len(parts) - needed)
        parts.sort(key=lambda part: float(np.min((part[0], part[1])[side])))
        ordered = [parts[at], *parts[:at], *parts[at + 1 :]]
        return p_for, p_against, [each for part in ordered for each in part[2]]

    def _leaf(self, sides: dict[str, dict[str, Any]], score: str) -> Weighed | None:
        hypothesis = self.hypothesis
        change = hypothesis.change
        ends = [{name: values[i]} for name, values in change.items() for i in (0, 1)] or [{}]
        wanted: list[dict[str, Any]] = []
        for pooled in self._pools(sides):  # one, unless a mean over several is compared
            conditions = {
                "a": {**self.setting, **pooled["b"], **pooled["a"]},
                "b": {**self.setting, **pooled["a"], **pooled["b"]},
            }
            of = ("a", "b") if hypothesis.b is not None else ("a",)
            wanted += [{**conditions[side], **end} for side in of for end in ends]
        groups = [self.cells.find(each) for each in wanted]
        if not all(groups):
            return None
        found = paired(groups, score, self.cells.varied(wanted))
        if found is None:
            return None
        values, bad = found
        self.used |= {result["name"] for group in groups for result in group.values()}
        if bad:
            self.broken += bad if score == hypothesis.score else []
            return (1.0, 1.0, [_unknown(self._text(sides), score, values)]) if score == hypothesis.score else None
        count = len(ends) * (2 if hypothesis.b is not None else 1)
        values = [np.mean(values[i::count], axis=0) for i in range(count)]
        own = values[1] - values[0] if change else values[0]
        other = (values[3] - values[2] if change else values[1]) if hypothesis.b is not None else np.zeros_like(own)
        main = Evidence(self._text(sides), score, estimate(own - other))
        p_for, p_against = self._claims(main.estimate, score)
        if not hypothesis.gains:
            return p_for, p_against, [main]
        gain = Evidence(self._text({"a": sides["a"], "b": {}}, alone=True), score, estimate(own))
        both = [(p_for, p_against), self._claims(gain.estimate, score)]
        return at_least(2, [p for p, _ in both]), at_least(1, [p for _, p in both]), [main, gain]

    def _pools(self, sides: dict[str, dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
        """The sides with each combination of what is pooled."""
        found = [sides]
        for level in self.pooled:
            found = [
                {**each, level.side: {**each[level.side], level.factor: value}}
                for each in found
                for value in level.values
            ]
        return found

    def _claims(self, found: Estimate, score: str) -> tuple[Any, Any]:
        """One-sided p-values for what is expected and against it."""
        expect, margin = self.hypothesis.expect, self.hypothesis.margin
        # Of another score, what counts is the direction that is better
        turned = direction(score) * direction(self.hypothesis.score) < 0
        margin = margin if score == self.hypothesis.score else 0.0
        if expect == "same":
            inside = np.maximum(found.above(-margin), found.below(margin))
            return inside, np.minimum(found.above(margin), found.below(-margin))
        up = (direction(score) >= 0) if expect == "not_worse" else (expect == "greater") != turned
        if up:
            return found.above(-margin), found.below(-margin)
        return found.below(margin), found.above(margin)

    def _text(self, sides: dict[str, dict[str, Any]], alone: bool = False) -> str:
        """The two sides in words: what differs between them, and what the hypothesis says of both."""
        for level in self.pooled:
            mean = f"the mean of {', '.join(name_of(value) for value in level.values)}"
            sides = {**sides, level.side: {**sides[level.side], level.factor: mean}}
        change = "".join(f", {name} {name_of(a)} to {name_of(b)}" for name, (a, b) in self.hypothesis.change.items())
        a = f"{_side({**sides['b'], **sides['a']})}{change}"
        return a if alone or self.hypothesis.b is None else f"{a}, less {_side({**sides['a'], **sides['b']})}{change}"


def _side(factors: dict[str, Any]) -> str:
    rest = ", ".join(f"{name} {name_of(value)}" for name, value in factors.items() if name != "divergence")
    return " at ".join(part for part in (name_of(factors.get("divergence", "")), rest) if part)


def _unknown(text: str, score: str, values: Sequence[np.ndarray]) -> Evidence:
    n_seeds, n_items = values[0].shape
    return Evidence(text, score, Estimate(np.nan, np.inf, 1.0, n_seeds, n_items))


def difference_of(found: Estimate, score: str) -> str:
    """`ROUGE-L +2.61 [+1.90, +3.32], 5 seeds x 256 items`."""
    numbers = [f"{value:+.{digits(score)}f}" for value in (found.mean, *found.interval())]
    return "{} {} [{}, {}], {} seeds x {} items".format(label(score), *numbers, found.n_seeds, found.n_items)


def agreement(decisions: Iterable[Decision]) -> dict[str, int]:
    """How many of a page's decisions have each outcome."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for decision in decisions:
        counts[decision.outcome] += 1
    return counts
