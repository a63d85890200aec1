# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Figures as PNG files, for a README."""

import re
from pathlib import Path
from typing import Any

from ...files import whole_file
from .figures import FAINT, INK, Figure, Line


MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "x", "cross": "P", "star": "*"}
DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 3, 2, 3)),
}
LEGEND_COLUMNS = 3
COLOURS = {INK: "#222222", FAINT: "#777777"}


def write_images(figures: list[Figure], folder: Path, prefix: str = "") -> list[Path]:
    """Write the views that a figure names, a file for each. Returns their paths."""
    paths = []
    for figure in figures:
        for view in figure.png:
            name = "_".join(part for part in (prefix, figure.key, view) if part)
            path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.png"
            _draw(figure, view, path)
            paths.append(path)
    return paths


def _draw(figure: Figure, view: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    columns = min(figure.columns, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    names = {line.name for panel in figure.panels for line in figure.lines(panel, view)}
    below = 0.2 * max(0, -(-len(names) // LEGEND_COLUMNS) - 2)  # a long legend takes room of its own
    canvas = Canvas(figsize=(4.6 * columns, 3.3 * rows + below), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(rows, columns, squeeze=False).flat
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes, figure.panels, strict=False):
        lines = figure.lines(panel, view)
        for number, line in enumerate(lines):
            handles.setdefault(line.name, _plot(axis, line, number, len(lines)))
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.x_title)
        axis.set_ylabel(figure.y_title(panel, view))
        if (limits := figure.y_range(panel, view)) is not None:
            axis.set_ylim(*limits)
        if panel.x_ticks:
            axis.set_xscale("log")
            axis.set_xticks(panel.x_ticks, [f"{x:g}" for x in panel.x_ticks])
            axis.minorticks_off()
        elif lines and lines[0].bars:
            axis.set_xticks(range(len(lines[0].x)), lines[0].x)
        axis.grid(axis="y", color="#e4e4e4")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    canvas.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(LEGEND_COLUMNS, len(handles)),
        frameon=False,
        fontsize=9,
    )
    with whole_file(path) as name:
        canvas.savefig(name, dpi=150, format="png")


def _plot(axis, line: Line, number: int, total: int):
    colour = COLOURS.get(line.colour, line.colour)
    if line.bars:
        width = 0.8 / total
        middles = [i + (number - (total - 1) / 2) * width for i in range(len(line.x))]
        return axis.bar(middles, line.y, width, color=colour)
    if line.low is not None and line.high is not None and len(line.x) == 1:
        axis.vlines(line.x, line.low, line.high, color=colour, linewidth=1.2)
    elif line.low is not None and line.high is not None:
        axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    marker = MARKERS.get(line.symbol, "p") if line.symbol else ""
    return axis.plot(line.x, line.y, color=colour, linestyle=DASHES[line.dash], marker=marker, markersize=5)[0]
