# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A sweep on a screen: its cells before they run, and its comparisons."""

import json
from collections.abc import Sequence
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from ..runs.cell import Cell
from .selection import TREATMENT


def print_cells(found: Sequence[Cell], stage: Sequence[Cell], select: dict[str, Any] | None) -> None:
    """List the cells that run first, and what may follow on them."""
    _list(stage)
    if select:
        print(f"# {what_follows(found, select)}")


def _list(found: Sequence[Cell]) -> None:
    """List the cells with their full settings, as YAML: what differs between them, and then what they share."""
    options = [cell.options for cell in found]
    shared = {k: v for k, v in options[0].items() if all(k in o and o[k] == v for o in options)}
    listed = {cell.name: {k: v for k, v in cell.options.items() if k not in shared} for cell in found}
    print(f"# {len(found)} cells, and what differs between them")
    print(yaml.safe_dump(listed, sort_keys=False, width=119))
    rest = {"every cell": shared, "evaluation": found[0].evaluation, "tune_learning_rate": found[0].tune_learning_rate}
    print("# What they share")
    print(yaml.safe_dump(rest, sort_keys=False, width=119), end="")


def what_follows(found: Sequence[Cell], select: dict[str, Any]) -> str:
    """The second stage in words, before it is known."""
    seeds = dict.fromkeys(cell.factors["seed"] for cell in found if cell.factors["seed"] not in select["seeds"])
    names = ("seed", *TREATMENT)
    objectives = {json.dumps({k: v for k, v in cell.factors.items() if k not in names}) for cell in found}
    return (
        f"Then, by {select['score']} on these: tau 1, the best tau and the best rule of each of "
        f"{len(objectives)} objectives on the seeds {', '.join(map(str, seeds))}, up to "
        f"{3 * len(objectives) * len(seeds)} cells"
    )


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The comparisons, a row each."""
    table = Table(
        "score",
        "change",
        "with",
        title="Paired differences (second less first)",
        caption="95% intervals for other seeds and items (with one seed, for other items alone). p: after Holm's "
        "correction over this table.",
    )
    for column in ("difference", "95% interval", "p", "seeds x items"):
        table.add_column(column, justify="right")
    for row in rows:
        shared = (
            str(value) if name in ("divergence", "mode") else f"{name} {value}"
            for name, value in row["shared"].items()
        )
        cells = [
            row["score"],
            f"{row['factor']} {row['first']} to {row['second']}",
            ", ".join(shared),
            f"{row['difference']:+.3f}",
            f"[{row['low']:+.3f}, {row['high']:+.3f}]",
            "-" if row["p_holm"] is None else f"{row['p_holm']:.3g}",
            f"{row['n_seeds']} x {row['n_items']}",
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table
