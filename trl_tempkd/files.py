# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError


@contextmanager
def whole_file(path: str | Path) -> Iterator[str]:
    """
    Gives a name to write to. What is there in the end becomes the file, on the disk before it has its name.

    Where writing fails, nothing of it stays, and what the file held before is untouched.

    Raises:
        [`UsageError`]: If the disk is full, the folder read-only, or something else of this name in the way.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield str(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file of text whole or not at all, also if the power fails. Errors as in [`whole_file`]."""
    with whole_file(path) as name, open(name, "w", encoding="utf-8") as file:
        file.write(text)
