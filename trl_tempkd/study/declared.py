# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Hypotheses: contrasts that a recipe declares before its runs.

A hypothesis compares two sides, `a` and `b`, on a score. What one side alone names is the same on both; the factors
that neither names are held equal too, and each combination of them is a setting of its own. A list of values stands
for several conditions: `a` of these means the best of them, `b` each of them, so that `a: {tau: [1, 2]}, b: {tau: [1,
2]}` compares best with best. `{some: [...]}`, `{every: [...]}` and `{most: [...]}` say otherwise, and `{mean: [...]}`
pools them: their mean is compared, over the seeds and items that all of them have.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..names import did_you_mean, stands_twice
from .scores import LABELS, kind


HYPOTHESES = "summary/hypotheses.json"  # what the recipe of a sweep has declared, in the folder of its results
EXPECTATIONS = ("greater", "less", "not_worse", "same")
QUANTIFIERS = ("some", "every", "most", "mean")
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


def read_declared(found: Any, where: str) -> list[dict[str, Any]]:
    """What a recipe's `hypotheses` hold, checked: a list of them, or the path of a YAML file with one."""
    if isinstance(found, str):
        import yaml

        try:
            if twice := stands_twice(found):
                raise UsageError(f"`hypotheses` in {where}: {found} has {twice}: leave one of them out.")
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
        quantifier, values = quantified(value, "some")
        if quantifier and not values:
            raise UsageError(f"{name!r} in {where}: expected a list of values, got {value!r}.")


def quantified(value: Any, default: str) -> tuple[str | None, list[Any]]:
    """Whether a factor has several values, and which count: of a side `a` the best, of a side `b` each."""
    if isinstance(value, list):
        return default, value
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in QUANTIFIERS:
        [(quantifier, values)] = value.items()
        return quantifier, values if isinstance(values, list) else []
    return None, [value]
