# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Hypotheses: contrasts that a recipe declares before its runs, and what the finished cells decide of them.

A hypothesis compares two sides, `a` and `b`, on a score. What one side alone names is the same on both; the factors
that neither names are held equal too, and each combination of them is a setting of its own. A list of values stands
for several conditions: `a` of these means the best of them, `b` each of them, so that `a: {tau: [1, 2]}, b: {tau: [1,
2]}` compares best with best. `{some: [...]}`, `{every: [...]}` and `{most: [...]}` say otherwise.

Every condition that is looked at counts: "some" is tested by Bonferroni's correction over all of them, "every" by the
least clear of them, so nothing is chosen on the data that it is tested on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..names import did_you_mean
from .scores import LABELS, digits, direction, kind, label
from .statistics import Estimate, at_least, estimate, holm
from .table import Cells, name_of, paired


LEVEL = 0.05  # two-sided, over a page
FEWEST_SEEDS = 3  # with fewer, runs that differ by chance alone decide too often
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
TOO_FEW, UNTESTED = "too few runs", "not tested"
OUTCOMES = (SUPPORTED, CONTRADICTED, UNDECIDED, TOO_FEW, UNTESTED)
EXPECTATIONS = ("greater", "less", "not_worse", "same")
QUANTIFIERS = ("some", "every", "most")
KEYS = ("name", "says", "source", "score", "a", "b", "change", "expect", "margin", "and", "over")


@dataclass(frozen=True)
class Hypothesis:
    """
    A contrast with a direction.

    Args:
        name, says, source (`str`):
            Its name, as `"A1"`; what it claims, as a sentence; where it is from.
        score (`str`):
            The score that decides.
        a, b (`dict[str, Any]`):
            The factors of the two sides. Without `b`, the change of `a` is compared with none.
        change (`dict[str, Any]`):
            A factor with two values: what is compared is the change from the first to the second.
        expect (`str`):
            `greater` or `less`: a's score, or its change, than b's. `not_worse`: than b's by more than the margin.
            `same`: within the margin of b's.
        margin (`float`):
            Of `not_worse` and `same`, in units of the score.
        gains (`bool`):
            Whether a's own change must go the same way too (`and: a_gains`).
        trained (`bool`):
            Whether runs are compared, so that it takes several seeds. Not for what is measured before any training
            (`over: items`).
    """

    name: str
    says: str
    a: dict[str, Any]
    b: dict[str, Any] | None = None
    score: str = "rouge_l"
    expect: str = "greater"
    change: dict[str, list[Any]] = field(default_factory=dict)
    margin: float = 0.0
    gains: bool = False
    trained: bool = True
    source: str = ""


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


def read_declared(found: Any, where: str) -> list[dict[str, Any]]:
    """What a recipe's `hypotheses` hold, checked: a list of them, or the path of a YAML file with one."""
    if isinstance(found, str):
        import yaml

        try:
            found = yaml.safe_load(Path(found).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"`hypotheses` in {where}: cannot read {found}: {error.strerror}.") from error
        except yaml.YAMLError as error:
            raise UsageError(f"`hypotheses` in {where}: {found} is not valid YAML: {error}") from error
    read_hypotheses(found, where)
    return found


def read_hypotheses(found: Any, where: str) -> list[Hypothesis]:
    """
    Read what a recipe declares, strictly.

    Args:
        found (`list[dict]`):
            The hypotheses as YAML has them.
        where (`str`):
            The recipe's name, for messages.
    """
    if not isinstance(found, list):
        raise UsageError(f"`hypotheses` in {where}: expected a list, got {found!r}.")
    read = [_read(each, f"hypothesis {number + 1} in {where}") for number, each in enumerate(found)]
    names = [each.name for each in read]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"`hypotheses` in {where}: {name!r} is the name of {names.count(name)} of them.")
    return read


def _read(found: Any, where: str) -> Hypothesis:
    if not isinstance(found, dict):
        raise UsageError(f"{where}: expected a mapping, got {found!r}.")
    for key in found:
        if key not in KEYS:
            raise UsageError(f"Unknown key {key!r} in {where}{did_you_mean(str(key), KEYS)}.")
    for key in ("name", "says", "a"):
        if not found.get(key):
            raise UsageError(f"{where} has no `{key}`.")
    where = f"hypothesis {found['name']} in {where.partition(' in ')[2]}"
    expect, change, also = found.get("expect", "greater"), found.get("change") or {}, found.get("and")
    if expect not in EXPECTATIONS:
        raise UsageError(f"`expect` of {where}: expected one of {', '.join(EXPECTATIONS)}, got {expect!r}.")
    score = found.get("score", "rouge_l")
    if kind(score) not in LABELS:
        raise UsageError(f"`score` of {where}: unknown score {score!r}{did_you_mean(kind(score), LABELS)}.")
    for side in ("a", "b"):
        _check_side(found.get(side), f"`{side}` of {where}", optional=side == "b" and bool(change))
    if change and not (isinstance(change, dict) and len(change) == 1 and _is_pair(next(iter(change.values())))):
        raise UsageError(
            f"`change` of {where}: expected a factor with two values, as {{tau: [1, 2]}}, got {change!r}."
        )
    if also not in (None, "a_gains") or (also and not (change and found.get("b"))):
        raise UsageError(f"`and` of {where}: expected a_gains, beside `change` and `b`, got {also!r}.")
    over = found.get("over", "runs")
    if over not in ("runs", "items"):
        raise UsageError(f"`over` of {where}: expected runs or items, got {over!r}.")
    margin = found.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not margin >= 0:
        raise UsageError(f"`margin` of {where}: expected a number from 0 on, got {margin!r}.")
    if (expect in ("not_worse", "same")) != bool(margin):
        raise UsageError(
            f"`margin` of {where}: {expect} "
            + ("needs one, in units of the score" if not margin else f"takes none, got {margin}")
            + "."
        )
    return Hypothesis(
        str(found["name"]),
        str(found["says"]),
        found["a"],
        found.get("b"),
        score,
        expect,
        change,
        float(margin),
        also is not None,
        over == "runs",
        str(found.get("source") or ""),
    )


def _is_pair(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 2


def _check_side(side: Any, where: str, optional: bool) -> None:
    if side is None and optional:
        return
    if not isinstance(side, dict) or not side:
        raise UsageError(
            f"{where}: expected factors of the grid, as {{divergence: forward_kl, tau: 2}}, got {side!r}."
        )
    for name, value in side.items():
        quantifier, values = _quantified(value, "some")
        if quantifier and not values:
            raise UsageError(f"{name!r} in {where}: expected a list of values, got {value!r}.")


def _quantified(value: Any, default: str) -> tuple[str | None, list[Any]]:
    """Whether a factor has several values, and which count: of a side `a` the best, of a side `b` each."""
    if isinstance(value, list):
        return default, value
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in QUANTIFIERS:
        [(quantifier, values)] = value.items()
        return quantifier, values if isinstance(values, list) else []
    return None, [value]


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
        self.fixed: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
        for side, default in (("a", "some"), ("b", "every")):
            for factor, value in (getattr(hypothesis, side) or {}).items():
                quantifier, values = _quantified(value, default)
                if quantifier is None:
                    self.fixed[side][factor] = value
                else:
                    self.levels.append(_Level(side, factor, quantifier, values))
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
        conditions = {
            "a": {**self.setting, **sides["b"], **sides["a"]},
            "b": {**self.setting, **sides["a"], **sides["b"]},
        }
        change = hypothesis.change
        ends = [{name: values[i]} for name, values in change.items() for i in (0, 1)] or [{}]
        wanted = [
            {**conditions[side], **end}
            for side in (("a", "b") if hypothesis.b is not None else ("a",))
            for end in ends
        ]
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
        own = values[1] - values[0] if change else values[0]
        other = (values[3] - values[2] if change else values[1]) if hypothesis.b is not None else np.zeros_like(own)
        main = Evidence(self._text(sides), score, estimate(own - other))
        p_for, p_against = self._claims(main.estimate, score)
        if not hypothesis.gains:
            return p_for, p_against, [main]
        gain = Evidence(self._text({"a": sides["a"], "b": {}}, alone=True), score, estimate(own))
        both = [(p_for, p_against), self._claims(gain.estimate, score)]
        return at_least(2, [p for p, _ in both]), at_least(1, [p for _, p in both]), [main, gain]

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
        change = "".join(f", {name} {a} to {b}" for name, (a, b) in self.hypothesis.change.items())
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
