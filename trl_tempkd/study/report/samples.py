# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What teacher and students say to the same prompts."""

import random
from dataclasses import dataclass
from typing import Any

from .results import MODES, Results


PROMPTS, SHOWN = 8, 4


@dataclass(frozen=True)
class Sample:
    """One prompt: what the data say, and what each writer (teacher, start, the conditions) says."""

    number: int
    prompt: str
    references: list[str]
    texts: dict[str, str]


@dataclass(frozen=True)
class Samples:
    """
    Several prompts.

    Args:
        samples (`list[Sample]`):
            The prompts, chosen at random with a fixed seed.
        conditions (`list[str]`):
            The students that can be shown.
        shown (`set[str]`):
            Those that are shown at first.
    """

    samples: list[Sample]
    conditions: list[str]
    shown: set[str]


def samples(results: Results, seed: int = 0) -> Samples | None:
    """Samples of the first seed of every condition, where the rows of the evaluation are known."""
    cells = {place: seeds[min(seeds)] for place, seeds in results.table.items()}
    # A cell counts for one condition here: at tau 1 it stands in both modes.
    own = {(s, mode, tau): cell for (s, mode, tau), cell in cells.items() if mode == results.modes[0] or tau != 1}
    known = [cell for cell in own.values() if cell.get("baseline") in results.baselines]
    if not known:
        return None
    items = known[0]["hashes"]["items"]
    keys = dict.fromkeys(cell["baseline"] for cell in known if cell["hashes"]["items"] == items)
    baselines = [results.baselines[key] for key in keys]
    names = {
        _name(series.label, mode, tau, len(results.modes) > 1): cell
        for (series, mode, tau), cell in own.items()
        if cell["hashes"]["items"] == items and cell.get("completions")
    }
    writers = {**_before(baselines, "teacher", "Teacher"), **_before(baselines, "start", "Before training"), **names}
    rows = baselines[0]["rows"]
    found = []
    for number in sorted(random.Random(seed).sample(range(len(rows)), min(PROMPTS, len(rows)))):
        texts = {name: text for name, writer in writers.items() if (text := _text(writer, number)) is not None}
        references = rows[number]["references"]
        references = [references] if isinstance(references, str) else list(references)
        found.append(Sample(number, str(rows[number]["prompt"]), references, texts))
    return Samples(found, list(names), set(_first(results, names)))


def _before(baselines: list[dict[str, Any]], part: str, title: str) -> dict[str, dict[str, Any]]:
    """The teachers or the untrained students, with their names where there are several."""
    found = {str(baseline[part].get("name")): baseline[part] for baseline in baselines if baseline[part]}
    return {f"{title} ({name})" if len(found) > 1 else title: writer for name, writer in found.items()}


def _name(label: str, mode: str, tau: float, several_modes: bool) -> str:
    softened = f", {MODES[mode]}" if several_modes and tau != 1 else ""
    return f"{label}, tau {tau:g}{softened}"


def _first(results: Results, names: dict[str, Any]) -> list[str]:
    """Of the first two divergences tau 1 and the highest tau, in one mode."""
    mode = results.modes[0]
    wanted = [
        _name(series.label, mode, tau, len(results.modes) > 1)
        for series in results.series[:2]
        for tau in dict.fromkeys((results.taus[0], results.taus[-1]))
    ]
    return [name for name in wanted if name in names] or list(names)[:SHOWN]


def _text(source: dict[str, Any], number: int) -> str | None:
    completions = source.get("completions") or [[]]
    return completions[0][number] if number < len(completions[0]) else None
