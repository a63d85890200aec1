# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
`--help` of the commands whose options are TRL's and transformers' too, which take seconds to import: written down
beforehand by `make help-texts`, and read where it holds.
"""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


WIDTH = 100  # of the lines
FOLDER = Path(__file__).parent / "help"


def stamp() -> str:
    """The versions that a text holds for: the options come from there."""
    try:
        return f"trl {version('trl')}, transformers {version('transformers')}"
    except PackageNotFoundError:
        return ""


def written_help(command: str, args: list[str]) -> str | None:
    """The help of a command, if that is all that is asked for, and there is one that holds here."""
    path = FOLDER / f"{command}.txt"
    if args not in (["--help"], ["-h"]) or not path.is_file():
        return None
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDTH:
        return None
    made_with, _, text = path.read_text(encoding="utf-8").partition("\n")
    return text if made_with == stamp() else None
