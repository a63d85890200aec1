# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The page: its sections from a folder's results, and the HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import hypotheses
from ..declared import Hypothesis, read_hypotheses
from ..derived import with_derived
from ..hypotheses import Decision, decide
from ..scores import better, digits, direction, label
from ..table import name_of
from . import repeat, svg
from .asymmetry import asymmetry, reading
from .figures import Figure, style_of
from .plots import head_and_tail, quality_over_diversity, scores_over_tau, training_curves
from .recommendation import Recommendation, recommend, said
from .results import Results
from .samples import Samples, samples
from .scores import Condition, conditions, deciding, ordered
from .tasks import TaskRow, task_rows


@dataclass(frozen=True)
class Section:
    """What the template shows of one folder, each part computed when it is asked for."""

    results: Results
    key: str

    @cached_property
    def conditions(self) -> list[Condition]:
        """Best first, by the score that decides."""
        found = conditions(self.results)
        score = deciding(found)
        return sorted(found, key=lambda each: -direction(score) * each.means[score].value) if score else found

    @property
    def tabled(self) -> list[str]:
        """The scores that the table of conditions can show: those of which one way is better."""
        return [name for name in ordered(n for each in self.conditions for n in each.means) if direction(name)]

    @cached_property
    def recommendation(self) -> Recommendation | None:
        return recommend(self.results, self.conditions)

    @property
    def declared(self) -> list[Hypothesis]:
        return read_hypotheses(self.results.hypotheses, str(self.results.folder))

    @cached_property
    def decisions(self) -> list[Decision]:
        wanted = [each.score for each in self.declared]
        return decide(self.declared, with_derived(self.results.cells, self.results.baselines, wanted))

    @cached_property
    def scores(self) -> Figure | None:
        return scores_over_tau(self.results)

    @cached_property
    def diversity(self) -> Figure | None:
        return quality_over_diversity(self.results)

    @cached_property
    def asymmetry(self) -> list[Figure]:
        return asymmetry(self.results)

    @property
    def reading(self) -> list[str]:
        return reading(self.results)

    @cached_property
    def training(self) -> Figure | None:
        return training_curves(self.results)

    @cached_property
    def head_and_tail(self) -> Figure | None:
        return head_and_tail(self.results)

    @cached_property
    def samples(self) -> Samples | None:
        return samples(self.results)

    @property
    def task_rows(self) -> list[TaskRow]:
        return task_rows(self.results)

    @property
    def task_models(self) -> list[str]:
        return list(self.results.evaluations)

    @property
    def figures(self) -> list[Figure]:
        found = [self.scores, self.diversity, *self.asymmetry, self.training, self.head_and_tail]
        return [figure for figure in found if figure is not None]


def verdicts_of(section: Section) -> dict[str, Any]:
    """What the page says, as JSON: the recommendation, every decision, and what the harness measured."""
    found = section.recommendation
    return {
        "results": str(section.results.folder),
        "recommendation": None
        if found is None
        else {
            "condition": found.best.label,
            "factors": next(iter(found.best.cells.values()))["settings"]["factors"],
            "score": found.score,
            "mean": found.best.means[found.score].value,
            "says": said(found),
            "sure": found.sure,
            "level": [each.label for each in found.level],
            "command": found.command,
        },
        "hypotheses": [
            {
                "name": each.hypothesis.name,
                "says": each.hypothesis.says,
                "setting": each.setting,
                "outcome": each.outcome,
                "sentence": each.sentence,
                "p": each.p,
                "p_holm": each.p_holm,
            }
            for each in section.decisions
        ],
        "lm_eval": section.results.evaluations,
    }


def number(value: float | None, digits: int | None = None, signed: bool = False) -> str:
    """A number with so many digits after the point, or with as many as its size asks for."""
    if value is None or not math.isfinite(value):
        return "–"
    if digits is None:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def render(sections: Sequence[Section], version: str, date: str) -> str:
    """
    The page as one HTML file that asks for nothing from elsewhere.

    Args:
        sections (`Sequence[Section]`):
            What is shown of each folder.
        version (`str`):
            Of this package.
        date (`str`):
            When the page was written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trl_tempkd.study", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, p_value=p_value, plain=plain, score_label=label)
    return environment.get_template("page.html.j2").render(
        sections=sections,
        version=version,
        date=date,
        better=better,
        digits=digits,
        hypotheses=hypotheses,
        name_of=name_of,
        repeat=repeat,
        said=said,
        style_of=style_of,
        svg=svg,
    )
