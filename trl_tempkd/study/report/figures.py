# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a figure is, before anything draws it: svg.py draws it for the page, images.py as a PNG file."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from .results import Series


# After Okabe and Ito, of about the same lightness, so that each has a contrast of 3:1 and more to the light page and
# to the dark one. With the marker they are told apart with any colour vision.
PALETTE = ("#0072b2", "#d55e00", "#009071", "#c0608f", "#b07d00", "#3d8fd1", "#7f7f7f", "#8a6fd1")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
TAUS = ("#3b7dd8", "#7a6fd0", "#b05fb4", "#d0556f", "#cc6a2c", "#a87f00")  # from cold to warm
INK, FAINT = "ink", "faint"  # colours of the page, light or dark


@dataclass(frozen=True)
class Line:
    """
    Points of one name in a panel.

    Args:
        name (`str`):
            Name in the legend. Lines of one name are shown and hidden together.
        x, y (`list`):
            Points.
        colour, dash, symbol (`str`):
            As `svg` draws them, or the colours `INK` and `FAINT`. Without a symbol there are no markers.
        low, high (`list[float]`, *optional*):
            A band.
        view (`str`, *optional*):
            The view of the figure that has this line; every one if it is empty.
        bars (`bool`, *optional*, defaults to `False`):
            Whether these are bars.
    """

    name: str
    x: list[Any]
    y: list[float]
    colour: str
    dash: str = "solid"
    symbol: str = ""
    low: list[float] | None = None
    high: list[float] | None = None
    view: str = ""
    bars: bool = False

    def finite(self) -> "Line":
        """Without the points at which nothing finite was measured; a bar has no height there."""
        if self.bars:
            return replace(self, y=[value if math.isfinite(value) else 0.0 for value in self.y])
        kept = [
            i
            for i, values in enumerate(zip(self.y, self.low or self.y, self.high or self.y, strict=True))
            if all(math.isfinite(value) for value in values)
        ]
        x, y, low, high = (each and [each[i] for i in kept] for each in (self.x, self.y, self.low, self.high))
        return replace(self, x=x or [], y=y or [], low=low, high=high)


@dataclass(frozen=True)
class Panel:
    """Lines on common axes. `y_title` is by view where the views differ in it."""

    title: str
    lines: list[Line]
    x_title: str
    y_title: str | dict[str, str]
    x_ticks: list[float] = field(default_factory=list)  # if any, the axis is logarithmic


@dataclass(frozen=True)
class Figure:
    """
    Panels with one legend.

    Args:
        key (`str`):
            Its name in the page and of its PNG file.
        title, caption (`str`):
            What it shows, and how to read it.
        panels (`list[Panel]`):
            What it is made of. In one row (`row`), panels have one range of y.
        views (`dict[str, str]`, *optional*):
            Names of the views by key, of which a reader chooses one.
        chooses (`str`, *optional*):
            What they choose.
        png (`tuple[str, ...]`, *optional*):
            The views that are written as PNG files.
        columns (`int`, *optional*, defaults to 2):
            Panels in a row.
        listed (`bool`, *optional*, defaults to `False`):
            Whether the numbers are given as a table too.
    """

    key: str
    title: str
    caption: str
    panels: list[Panel]
    views: dict[str, str] = field(default_factory=dict)
    chooses: str = ""
    png: tuple[str, ...] = ()
    columns: int = 2
    listed: bool = False

    def lines(self, panel: Panel, view: str) -> list[Line]:
        found = (line.finite() for line in panel.lines if line.view in ("", view))
        return [line for line in found if line.x]

    def y_title(self, panel: Panel, view: str) -> str:
        return panel.y_title if isinstance(panel.y_title, str) else panel.y_title.get(view, "")

    def y_range(self, panel: Panel, view: str) -> list[float] | None:
        """One range for the panels that have the same title of y, so that they can be compared by eye."""
        alike = [other for other in self.panels if self.y_title(other, view) == self.y_title(panel, view)]
        values = [
            value
            for other in alike
            for line in self.lines(other, view)
            for part in (line.y, line.low or [], line.high or [], [0.0] if line.bars else [])
            for value in part
        ]
        if not values:
            return None
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        below = 0.0 if low == 0 and any(line.bars for line in panel.lines) else margin
        return [low - below, high + margin]


@dataclass(frozen=True)
class Style:
    colour: str
    symbol: str
    dash: str


def style_of(series: Series) -> Style:
    """One colour and marker for a divergence, wherever it appears; the series that share it differ in their dashes."""
    from ...divergences import DIVERGENCES
    from ...objectives import OBJECTIVES

    names = list(dict.fromkeys([*DIVERGENCES, *OBJECTIVES]))
    number = names.index(series.divergence) if series.divergence in names else len(names)
    symbol = SYMBOLS[(number + number // len(PALETTE)) % len(SYMBOLS)]
    return Style(PALETTE[number % len(PALETTE)], symbol, DASHES[series.variant % len(DASHES)])


def tau_colour(tau: float, taus: Iterable[float]) -> str:
    """Colours from cold to warm over all the values of tau."""
    order = sorted(set(taus))
    position = order.index(tau) / max(1, len(order) - 1)
    return TAUS[round(position * (len(TAUS) - 1))]
