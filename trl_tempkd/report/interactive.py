# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Figures for the page: Plotly's JSON, from which page.js draws a view in the colours of the page."""

import json
from typing import Any

from .figures import FAINT, INK, Figure, Line, Panel


def panel_json(figure: Figure, panel: Panel) -> str:
    """
    A panel: its `data`, each trace with its `view` and legend entry in `meta`, its `layout`, and what the layout is in
    each view. Safe inside a `<script>` element.
    """
    import plotly.graph_objects as go

    traces = [trace for line in panel.lines for trace in _traces(line, panel.x_title)]
    layout: dict[str, Any] = {
        "template": "none",
        "autosize": True,
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "barmode": "group",
        "bargap": 0.2,
        "margin": {"l": 56, "r": 12, "t": 8, "b": 44},
        "xaxis": {"title": {"text": panel.x_title, "standoff": 8}, "zeroline": False, "fixedrange": True},
        "yaxis": {"zeroline": False, "fixedrange": True, "title": {"standoff": 6}},
    }
    if panel.x_ticks:
        layout["xaxis"] |= {"type": "log", "tickvals": panel.x_ticks, "ticktext": [f"{x:g}" for x in panel.x_ticks]}
    elif any(line.bars for line in panel.lines):
        layout["xaxis"]["type"] = "category"
    views = {
        view: {"title": figure.y_title(panel, view), "range": figure.y_range(panel, view)}
        for view in figure.views or [""]
    }
    drawn = json.loads(go.Figure({"data": traces, "layout": layout}).to_json())  # Plotly checks every name
    return escaped({"data": drawn["data"], "layout": drawn["layout"], "views": views})


def escaped(value: Any) -> str:
    """JSON that cannot end the `<script>` element that it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _traces(line: Line, x_title: str) -> list[dict[str, Any]]:
    known = {INK: "#808080", FAINT: "#808080"}  # page.js puts in those of the page
    colour = known.get(line.colour, line.colour)
    meta = {"view": line.view, "name": line.name, "colour": line.colour, "dash": line.dash, "symbol": line.symbol}
    common = {"name": line.name, "meta": {**meta, "kind": "bar" if line.bars else "line"}}
    at = "" if line.bars else f"{x_title} "
    hover = f"<b>%{{fullData.name}}</b><br>{at}%{{x}}: %{{y:.4g}}"
    if line.bars:
        bar = {"type": "bar", "x": line.x, "y": line.y, "marker": {"color": colour}}
        return [{**bar, **common, "hovertemplate": hover + "<extra></extra>"}]
    traces: list[dict[str, Any]] = []
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if line.symbol else "lines",
        "x": line.x,
        "y": line.y,
        "line": {"color": colour, "dash": line.dash, "width": 2},
        **common,
    }
    if line.symbol:
        trace["marker"] = {"color": colour, "symbol": line.symbol, "size": 8}
    if line.low is not None and line.high is not None:
        trace["customdata"] = [list(ends) for ends in zip(line.low, line.high, strict=True)]
        hover += " [%{customdata[0]:.4g}, %{customdata[1]:.4g}]"
        band = {
            "type": "scatter",
            "mode": "lines",
            "x": [*line.x, *reversed(line.x)],
            "y": [*line.high, *reversed(line.low)],
            "fill": "toself",
            "fillcolor": colour,
            "opacity": 0.16,
            "line": {"width": 0},
            "hoverinfo": "skip",
        }
        if len(line.x) == 1:  # a band without width
            ends = {"symmetric": False, "array": [line.high[0] - line.y[0]], "arrayminus": [line.y[0] - line.low[0]]}
            trace["error_y"] = {"type": "data", **ends, "color": colour, "thickness": 1.5}
        else:
            traces.append({**band, "name": line.name, "meta": {**meta, "kind": "band"}})
    trace["hovertemplate"] = hover + "<extra></extra>"
    return [*traces, trace]
