# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Figures for the page, as SVG in the page's own colours.

A point says what it is when the pointer rests on it (`<title>`), so that the page needs no library. Lines of one name
are in a group of that name, which the legend hides.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from .figures import FAINT, INK, Figure, Line, Panel


WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 8, 40
POINTS = 40  # of a curve without markers that say what they are
COLOURS = {INK: "var(--ink)", FAINT: "var(--muted)"}
DASHES = {"dash": "6 3", "dot": "2 3", "dashdot": "6 3 2 3", "longdash": "10 4", "longdashdot": "10 4 2 4"}
# Around (0, 0), of about the same area
MARKERS = {
    "circle": "M0-4a4 4 0 1 0 .01 0z",
    "square": "M-3.5-3.5h7v7h-7z",
    "diamond": "M0-5l5 5-5 5-5-5z",
    "triangle-up": "M0-4.5l4.5 8h-9z",
    "x": "M-4-2.5-2.5-4 0-1.5 2.5-4 4-2.5 1.5 0 4 2.5 2.5 4 0 1.5-2.5 4-4 2.5-1.5 0z",
    "cross": "M-1.5-4h3v2.5H4v3H1.5V4h-3V1.5H-4v-3h2.5z",
    "star": "M0-5 1.5-1.5 5.3-1.2 2.4 1.3 3.3 5 0 3-3.3 5-2.4 1.3-5.3-1.2-1.5-1.5z",
    "pentagon": "M0-4.5 4.5-1.2 2.8 4h-5.6L-4.5-1.2z",
}
Place = Callable[[Any], float]


def colour(name: str) -> str:
    return COLOURS.get(name, name)


def swatch(line: Line) -> str:
    """The line and marker of a legend's entry."""
    if line.bars:
        inside = f'<rect x="8" y="1" width="12" height="12" fill="{colour(line.colour)}"/>'
    else:
        inside = f'<line x1="0" x2="28" y1="7" y2="7" {_stroke(line)}/>'
        if line.symbol:
            inside += f'<path transform="translate(14 7)" d="{MARKERS[line.symbol]}" fill="{colour(line.colour)}"/>'
    return f'<svg class="swatch" width="28" height="14" aria-hidden="true">{inside}</svg>'


def legend(figure: Figure, view: str) -> dict[str, Line]:
    """The entries of a view's legend, a line for each name."""
    found: dict[str, Line] = {}
    for panel in figure.panels:
        for line in figure.lines(panel, view):
            found.setdefault(line.name, line)
    return found


def draw(figure: Figure, panel: Panel, view: str) -> str:
    """A panel in a view."""
    lines, limits = figure.lines(panel, view), figure.y_range(panel, view)
    if not lines or limits is None:
        return ""
    low, high = limits
    title = figure.y_title(panel, view)
    bars = any(line.bars for line in lines)
    xs = [x for line in lines for x in line.x]
    place_x = _bands(lines[0].x) if bars else _axis(panel.x_ticks or xs, logarithmic=bool(panel.x_ticks))
    shown = lines[0].x if bars else panel.x_ticks or ticks(min(xs), max(xs))

    def place_y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [_grid(ticks(low, high), place_y, title), _below(shown, place_x, panel.x_title)]
    for number, line in enumerate(lines):
        drawn = (
            _bars(line, place_x, place_y, number, len(lines))
            if bars
            else _curve(line, panel.x_title, place_x, place_y)
        )
        parts.append(f'<g data-name="{escape(line.name)}">{drawn}</g>')
    label = escape(f"{figure.title}, {panel.title}: {title}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers in a range, about so many."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / about))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _axis(values: Sequence[float], logarithmic: bool) -> Place:
    scale = math.log if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    inner = WIDTH - LEFT - RIGHT - 20

    def place(x: float) -> float:
        share = (scale(x) - low) / (high - low) if high > low else 0.5
        return round(LEFT + 10 + share * inner, 1)

    return place


def _bands(names: Sequence[Any]) -> Place:
    width = (WIDTH - LEFT - RIGHT) / len(names)
    middles = {name: round(LEFT + (i + 0.5) * width, 1) for i, name in enumerate(names)}
    return middles.__getitem__


def _grid(values: Sequence[float], place_y: Place, title: str) -> str:
    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value, y in ((value, place_y(value)) for value in values)
    )
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    short = title if len(title) <= 46 else f"{title[:45]}…"
    return f'{lines}<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(short)}</text>'


def _below(values: Sequence[Any], place_x: Place, title: str) -> str:
    bottom = HEIGHT - BOTTOM
    labels = "".join(
        f'<text x="{place_x(value)}" y="{bottom + 16}" text-anchor="middle">{escape(_said(value))}</text>'
        for value in values
    )
    axis = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    return f'{axis}{labels}<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(title)}</text>'


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _stroke(line: Line) -> str:
    dash = f' stroke-dasharray="{DASHES[line.dash]}"' if line.dash in DASHES else ""
    return f'stroke="{colour(line.colour)}" stroke-width="2" fill="none"{dash}'


def _curve(line: Line, x_title: str, place_x: Place, place_y: Place) -> str:
    points = [(place_x(x), place_y(y)) for x, y in zip(line.x, line.y, strict=True)]
    return "".join(
        (
            _interval(line, points, place_y),
            f'<polyline points="{_path(points)}" {_stroke(line)}/>',
            *_points(line, x_title, points),
        )
    )


def _interval(line: Line, points: list[tuple[float, float]], place_y: Place) -> str:
    if line.low is None or line.high is None:
        return ""
    ends = [(x, place_y(a), place_y(b)) for (x, _), a, b in zip(points, line.low, line.high, strict=True)]
    if len(ends) == 1:  # a band without width
        [(x, low, high)] = ends
        return f'<line x1="{x}" x2="{x}" y1="{low}" y2="{high}" {_stroke(line)}/>'
    around = [(x, high) for x, _, high in ends] + [(x, low) for x, low, _ in reversed(ends)]
    return f'<polygon class="band" points="{_path(around)}" fill="{colour(line.colour)}"/>'


def _points(line: Line, x_title: str, points: list[tuple[float, float]]) -> list[str]:
    marker = f'<path d="{MARKERS[line.symbol]}" fill="{colour(line.colour)}"/>' if line.symbol else ""
    every = 1 if marker else max(1, len(points) // POINTS)
    found = []
    for i in range(0, len(points), every):
        (x, y), text = points[i], f"{line.name}\n{x_title} {_said(line.x[i])}: {line.y[i]:.4g}"
        if line.low is not None and line.high is not None:
            text += f" [{line.low[i]:.4g}, {line.high[i]:.4g}]"
        inside = f'<title>{escape(text)}</title><circle r="8" fill="transparent"/>{marker}'
        found.append(f'<g class="point" transform="translate({x} {y})">{inside}</g>')
    return found


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _bars(line: Line, place_x: Place, place_y: Place, number: int, count: int) -> str:
    width = 0.8 * (WIDTH - LEFT - RIGHT) / len(line.x) / count
    parts = []
    for x, y in zip(line.x, line.y, strict=True):
        left = place_x(x) + (number - count / 2) * width
        top, bottom = sorted((place_y(y), place_y(0.0)))
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{bottom - top:.1f}" '
            f'fill="{colour(line.colour)}"><title>{escape(f"{line.name}, {x}: {y:.4g}")}</title></rect>'
        )
    return "".join(parts)
