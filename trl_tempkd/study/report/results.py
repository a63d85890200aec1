# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a sweep has left in its folder, read once."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..declared import HYPOTHESES
from ..sweep.selection import path_of
from ..table import name_of, obstacles


MODES = {"both": "both sides softened", "teacher": "teacher alone softened"}
Place = tuple["Series", str, float]  # series, mode, tau


@dataclass(frozen=True)
class Series:
    """
    What is one line of a figure: a divergence, and what else the grid varies beside tau, mode and seed.

    Args:
        divergence (`str`):
            Its name.
        label (`str`):
            The name with its parameters and with the values of the other factors.
        variant (`int`):
            Which of the series with this divergence it is.
    """

    divergence: str
    label: str
    variant: int = 0


@dataclass(frozen=True)
class Results:
    """
    A folder of results.

    Args:
        folder (`pathlib.Path`):
            The folder as it was given.
        cells (`list[dict]`):
            The results of its finished cells, in the order of their places in the grid.
        baselines (`dict[str, dict]`):
            By key what is known of the teacher and of the student before training.
        settings (`list[dict]`):
            The settings of every cell, finished or not.
        errors (`dict[str, str]`):
            By cell the text of its error file.
        live (`dict[str, list[dict]]`):
            By finished cell what was measured while it trained, the rows of its diagnostics.csv.
        selection (`dict`, *optional*):
            What a sweep with `select` has chosen.
        hypotheses (`list[dict]`, *optional*):
            What its recipe has declared.
        evaluations (`dict[str, dict]`):
            By model what `trl-tempkd evaluate --lm_eval` has measured of it, by task.
    """

    folder: Path
    cells: list[dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    settings: list[dict[str, Any]]
    errors: dict[str, str]
    live: dict[str, list[dict[str, Any]]]
    selection: dict[str, Any] | None = None
    hypotheses: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.folder.resolve().name

    @property
    def unfinished(self) -> list[str]:
        finished = {cell["name"] for cell in self.cells}
        return [each["name"] for each in self.settings if each["name"] not in {*finished, *self.errors}]

    @cached_property
    def obstacles(self) -> list[str]:
        return obstacles(self.cells)

    @cached_property
    def factors(self) -> list[str]:
        """The factors beside divergence, tau, mode and seed that have several values."""
        known = {name for cell in self.cells for name in cell["settings"]["factors"]}
        known -= {"divergence", "tau", "mode", "seed"}

        def values(name: str) -> set[str]:
            return {json.dumps(cell["settings"]["factors"].get(name)) for cell in self.cells}

        return sorted(name for name in known if len(values(name)) > 1)

    @cached_property
    def series(self) -> list[Series]:
        found: dict[str, str] = {}
        for cell in self.cells:
            found.setdefault(self._label(cell), divergence_of(cell["settings"]["factors"]["divergence"]))
        names = list(found.values())
        return [Series(name, label, names[:i].count(name)) for i, (label, name) in enumerate(found.items())]

    @cached_property
    def modes(self) -> list[str]:
        found = {cell["settings"]["factors"]["mode"] for cell in self.cells}
        return [mode for mode in MODES if mode in found]

    @cached_property
    def taus(self) -> list[float]:
        return sorted({float(cell["settings"]["factors"]["tau"]) for cell in self.cells})

    @cached_property
    def table(self) -> dict[Place, dict[Any, dict[str, Any]]]:
        """By place the cell of each seed. At tau 1 the modes are the same run, which counts for all of them."""
        series = {each.label: each for each in self.series}
        found: dict[Place, dict[Any, dict[str, Any]]] = {}
        for own in (True, False):
            for cell in self.cells:
                factors = cell["settings"]["factors"]
                tau, one = float(factors["tau"]), series[self._label(cell)]
                for mode in self.modes:
                    if (mode == factors["mode"]) if own else tau == 1:
                        found.setdefault((one, mode, tau), {}).setdefault(factors["seed"], cell)
        return found

    def _label(self, cell: dict[str, Any]) -> str:
        factors = cell["settings"]["factors"]
        others = {name: factors.get(name) for name in self.factors}
        said = [f"{name} {name_of(value)}" for name, value in others.items() if value is not None]
        return ", ".join([name_of(factors["divergence"]), *said])


def divergence_of(factor: str | dict[str, Any]) -> str:
    """The name alone, without parameters."""
    return factor if isinstance(factor, str) else next(iter(factor))


def read(folder: str | Path, evaluations: Sequence[str | Path] = ()) -> Results:
    """
    Read a folder of `trl-tempkd sweep`.

    Args:
        folder (`str` or `pathlib.Path`): it.
        evaluations (`Sequence`, *optional*):
            Further results of `trl-tempkd evaluate`: files, or folders with a `results.json`. Those in the folders of
            cells are found.

    Raises:
        `ValueError`: If it is no such folder, or a file in it is not what a sweep has written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}. Give the output_dir of a `trl-tempkd sweep`.")
    cells = [_json(path, "settings", "scores", "hashes") for path in sorted(folder.glob("*.json"))]
    settings = {cell["name"]: cell["settings"] for cell in cells}
    for path in sorted(folder.glob("*/cell.json")):
        settings.setdefault(path.parent.name, _json(path, "name", "factors"))
    if not settings:
        raise UsageError(f"{folder} has no cell of a sweep. Give the output_dir of a `trl-tempkd sweep`.")
    return Results(
        folder,
        sorted(cells, key=lambda cell: _place(cell["settings"])),
        {path.stem: _json(path, "teacher", "start") for path in sorted(folder.glob("summary/baselines/*.json"))},
        sorted(settings.values(), key=_place),
        {
            path.name.removesuffix(".error.txt"): path.read_text(encoding="utf-8", errors="replace")
            for path in sorted(folder.glob("*.error.txt"))
        },
        {
            cell["name"]: rows
            for cell in cells
            if (rows := cell.get("diagnostics") or _live(folder / cell["name"] / "diagnostics.csv"))
        },
        _json(path, "select", "objectives") if (path := path_of(folder)).is_file() else None,
        _json(path, "hypotheses")["hypotheses"] if (path := folder / HYPOTHESES).is_file() else [],
        _evaluated(folder, evaluations),
    )


def _evaluated(folder: Path, given: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(folder.glob("*/results.json")):
        if tasks := _json(path, "settings").get("lm_eval"):
            found[path.parent.name] = tasks
    for place in given:
        path = Path(place, "results.json") if Path(place).is_dir() else Path(place)
        if not path.is_file():
            raise UsageError(f"There is no {path}. Give the results of `trl-tempkd evaluate`.")
        results = _json(path, "settings")
        if not results.get("lm_eval"):
            raise UsageError(f"{path} has nothing of the LM evaluation harness: evaluate with --lm_eval TASKS.")
        name = str(results["settings"].get("model_name_or_path"))
        found[name if name not in found else f"{name} ({path})"] = results["lm_eval"]
    return found


def _json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not valid JSON: {error}. Delete it, and run the sweep again.") from error
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise UsageError(f"{path} has no {', '.join(missing)}: no sweep has written it. Move it out of the folder.")
    return found


def _place(settings: dict[str, Any]) -> tuple[Any, ...]:
    """In the order of tau and seed by number; divergences in the order of the family, the KLs first."""
    from ...divergences import DIVERGENCES
    from ...objectives import OBJECTIVES

    factors = settings["factors"]
    name, names = divergence_of(factors["divergence"]), list(dict.fromkeys([*DIVERGENCES, *OBJECTIVES]))
    position = names.index(name) if name in names else len(names)
    seed = factors["seed"]
    return position, name_of(factors["divergence"]), factors["mode"], float(factors["tau"]), seed, settings["name"]


def _live(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row.get(name) for name in ("value", "step", "tau"))]
    return [{**row, "value": float(row["value"]), "step": int(row["step"]), "tau": float(row["tau"])} for row in rows]
