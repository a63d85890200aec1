# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The page: its sections from a folder's results, and the HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..sweep.claims import Verdict, verdicts
from ..sweep.scores import better, digits, label
from . import repeat
from .asymmetry import asymmetry
from .claims import PAPERS, Claim, by_claim, conditions_beside, shared_conditions, whiskers
from .figures import Figure, style_of
from .frontier import Row as FrontierRow
from .frontier import frontier, frontier_figure
from .interactive import panel_json
from .plots import head_and_tail, scores_over_tau, training_curves
from .results import MODES, Results
from .samples import Samples, samples
from .scores import Row, by_item, family


@dataclass(frozen=True)
class Section:
    """What the template shows of one folder, each part computed when it is asked for."""

    results: Results
    key: str

    @cached_property
    def verdicts(self) -> list[Verdict]:
        return verdicts(self.results.cells, self.results.baselines)

    @property
    def claims(self) -> list[Claim]:
        return by_claim(self.verdicts)

    @property
    def shared_conditions(self) -> dict[str, Any]:
        return shared_conditions(self.verdicts)

    @cached_property
    def frontier(self) -> list[FrontierRow]:
        return frontier(self.results)

    @cached_property
    def frontier_figure(self) -> Figure | None:
        return frontier_figure(self.frontier)

    @cached_property
    def scores(self) -> Figure | None:
        return scores_over_tau(self.results)

    @cached_property
    def family(self) -> dict[str, list[Row]]:
        return {score: rows for score in by_item(self.results) if (rows := family(self.results, score))}

    @cached_property
    def asymmetry(self) -> list[Figure]:
        return asymmetry(self.results)

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
    def figures(self) -> list[Figure]:
        found = [self.frontier_figure, self.scores, *self.asymmetry, self.training, self.head_and_tail]
        return [figure for figure in found if figure is not None]


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
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trl_tempkd", "report"),
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
        plotly=get_plotlyjs(),
        panel_json=panel_json,
        style_of=style_of,
        conditions_beside=conditions_beside,
        papers=PAPERS,
        whiskers=whiskers,
        better=better,
        repeat=repeat,
        digits=digits,
        modes=MODES,
        zip=zip,
    )
