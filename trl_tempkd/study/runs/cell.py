# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
A cell, and what it leaves in a folder of results: `NAME.json` once it is finished, `NAME.error.txt` where it failed,
and a folder `NAME` of its own.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UsageError


# How a cell's student is scored: on so many `rows` of the test split, and on other `datasets` by name. The seeds are
# those of sampling: MiniLLM takes 10 to 50. At several `temperatures` its quality over its diversity is measured too.
# `diagnostics_rows` are rows of the training split on which the gradients of both KLs are measured once, before
# training.
EVALUATION: dict[str, Any] = {
    "rows": 256,
    "datasets": {},
    "seeds": [10],
    "greedy": False,
    "max_new_tokens": 128,
    "temperature": 1.0,
    "temperatures": [],
    "top_p": 1.0,
    "batch_size": 64,
    "dtype": "auto",
    "diagnostics_rows": 32,
}
# What says which rows a cell takes
DATA = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets")


@dataclass(frozen=True)
class Cell:
    """
    One run: a student that is trained and scored. Of a sweep's grid, or a trial of a study.

    Args:
        name (`str`):
            Name of its files, such as `forward_kl-tau2-both-seed1`.
        factors (`dict[str, Any]`):
            Its place in the grid: divergence, tau, mode, seed and what else the grid has.
        options (`dict[str, Any]`):
            All the options of its `trl-tempkd distill`, but for the output folder.
        evaluation (`dict[str, Any]`):
            How its student is scored: see `EVALUATION`.
        tune_learning_rate (`list[float]`):
            Learning rates to choose from, if any.
        trial (`dict[str, Any]`):
            What makes it a trial of a study: the `database` of this, its `number` there, the `score`, `pruning` and
            the `max_steps` that this counts on. Empty for a cell of a sweep.
        own (`dict[str, str]`):
            Of a divergence or a temperature rule that comes from somewhere else, the hash of its source.
    """

    name: str
    factors: dict[str, Any]
    options: dict[str, Any]
    evaluation: dict[str, Any] = field(default_factory=lambda: dict(EVALUATION))
    tune_learning_rate: list[float] = field(default_factory=list)
    trial: dict[str, Any] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """All that its result depends on, as JSON gives it back."""
        found = asdict(self)
        for name in ("trial", "own"):  # results of sweeps have no such keys, those of what comes with the library none
            if not found[name]:
                del found[name]
        return json.loads(json.dumps(found))


def finished(results_dir: Path, cell: Cell) -> dict[str, Any] | None:
    """
    The result of a cell, or `None` if there is none yet.

    Raises:
        `ValueError`: If there is one of the same name that was reached with other settings.
    """
    path = results_dir / f"{cell.name}.json"
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    found, wanted = result["settings"], cell.settings
    if found != wanted:
        for part in ("options", "evaluation", "own"):
            of, now = found.get(part, {}), wanted.get(part, {})
            for key in sorted({*of, *now}):
                old, new = of.get(key), now.get(key)
                if old != new:
                    raise UsageError(
                        f"{path} was reached with {key}: {old}, and the recipe now says {new}. Give another "
                        "--output_dir, or delete the file to run the cell again."
                    )
        raise UsageError(f"{path} was reached with other settings. Give another --output_dir, or delete the file.")
    return result


def check_same_rows(results_dir: Path, cell: Cell, fingerprints: dict[str, str]) -> None:
    """
    Stop where a finished cell of the same data was reached on other rows: the two cannot be compared.

    Args:
        fingerprints (`dict[str, str]`):
            Those of the rows that this cell is about to use.

    Raises:
        `ValueError`: If there is such a cell.
    """

    def data_of(settings: dict[str, Any]) -> list[Any]:
        named, scored = settings["options"], settings["evaluation"]
        return [named.get(name) for name in DATA] + [scored.get(name) for name in ("rows", "datasets")]

    for path in sorted(results_dir.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "settings" not in result or data_of(result["settings"]) != data_of(cell.settings):
            continue
        for name, now in fingerprints.items():
            before = result.get("fingerprints", {}).get(name, "not noted")
            if before != now:
                raise UsageError(
                    f"{path} was reached on other rows: the fingerprint of its {name} rows is {before}, and now it "
                    f"would be {now}. The data has changed (that of `tiny` does with the installed packages). Give "
                    "another --output_dir, or delete the file."
                )


def error_file(results_dir: Path, name: str) -> Path:
    return results_dir / f"{name}.error.txt"


def reason_of(results_dir: Path, name: str) -> str:
    """Why a cell failed, on one line."""
    path = error_file(results_dir, name)
    return reason(path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "")


def reason(error: str) -> str:
    """The text of an error file on one line: what its last exception says, or how the process ended."""
    *before, said = re.split(r"^Traceback.*\n", error, flags=re.MULTILINE)
    if before:  # the frames are indented; what is said starts behind them, and may have several lines
        lines = said.splitlines()
        frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
        rest = lines[frames[-1] + 1 if frames else 0 :]
        said = "\n".join(rest[next((n for n, line in enumerate(rest) if line[:1] not in ("", " ")), 0) :])
    return " ".join(said.split())[:500] or "no reason given"


def delete_weights(folder: Path) -> None:
    """Delete the weights of a finished cell, and its checkpoints. What was measured stays, and so does the recipe."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.index.json")]:
        path.unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
