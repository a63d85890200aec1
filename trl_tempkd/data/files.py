# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What is wrong with a file of rows, by its line: `datasets` says at most that it couldn't read it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..paths import BUILDERS


def files_of(name: str | None, mixture: Iterable[Any] = ()) -> list[Path]:
    """
    The files on this machine that the name of a data set stands for, and those of a mixture.

    Args:
        name (`str`, *optional*):
            A file, a folder of files, or anything else, which has none.
        mixture (`Iterable`, *optional*):
            The `datasets` of a recipe, with `path` and `data_files`.
    """
    names = [] if name is None else [name]
    for part in mixture:
        given = part.data_files or []
        given = list(given.values()) if isinstance(given, dict) else given
        for each in [part.path, *([given] if isinstance(given, str) else given)]:
            names += [each] if isinstance(each, str) else each
    found: list[Path] = []
    for path in map(Path, names):
        found += [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return [path for path in found if path.suffix in BUILDERS and path.is_file()]


def fault_of(path: Path, columns: bool = False) -> str | None:
    """
    The first fault of a file, with its line where it has lines, or `None`.

    Args:
        path (`pathlib.Path`):
            A file of rows.
        columns (`bool`, *optional*, defaults to `False`):
            Whether it is a fault that rows have other columns than the first, which `datasets` takes in small files.
    """
    if not path.stat().st_size:
        return f"{path} is empty"
    if path.suffix == ".parquet":
        return _parquet(path)
    lines: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                return f"{path}, line {number}: byte {line[error.start]:#x} is no UTF-8; save the file as UTF-8"
    if path.suffix == ".csv":
        return _csv(path)
    return _json(path, lines, columns) if path.suffix in (".json", ".jsonl") else None


def _json(path: Path, lines: list[str], columns: bool) -> str | None:
    text = "".join(lines).strip()
    if not text:
        return f"{path} has no rows"
    if path.suffix == ".json" or text[0] == "[":  # one value over all lines
        try:
            json.loads("".join(lines))
            return None
        except json.JSONDecodeError as error:
            if text[0] == "[":
                return f"{path}, line {error.lineno}: {error.msg} (column {error.colno})"
    return _json_lines(path, lines, columns)


def _json_lines(path: Path, lines: list[str], columns: bool) -> str | None:
    known: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.strip())
        except json.JSONDecodeError as error:
            return f"{path}, line {number}: {error.msg} (column {error.colno}): {_shown(line)}"
        if not isinstance(row, dict):
            return f"{path}, line {number}: a row must be an object, `{{...}}`: {_shown(line)}"
        known = known or dict.fromkeys(row, number)
        other = sorted(set(row) ^ set(known))
        if columns and other:
            first = next(iter(known.values()), number)
            return (
                f"{path}, line {number}: its columns ({', '.join(row)}) aren't those of line {first} "
                f"({', '.join(known)}); give every row the same, with null where it has nothing for "
                f"{', '.join(map(repr, other))}"
            )
    return None


def _csv(path: Path) -> str | None:
    import pandas as pd

    try:
        pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:  # these name the line
        return f"{path}: {str(error).strip()}"
    return None


def _parquet(path: Path) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        return f"{path} is no Parquet file, or damaged: {error}"
    return None


def _shown(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 60 else f"{line[:57]}..."
