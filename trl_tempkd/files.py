# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Files that are there whole or not at all, and disks that take no more."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UsageError
from .locks import locked


# Of a disk that is full, that takes no such file, or is read-only, and of what is in the way
_NUMBERS = (
    "ENOSPC EDQUOT EFBIG EROFS EIO ENODEV ESTALE EACCES EPERM ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP ENOTEMPTY"
)
_UNWRITABLE = {getattr(errno, name) for name in _NUMBERS.split() if hasattr(errno, name)}


@contextmanager
def whole_file(path: str | Path) -> Iterator[str]:
    """
    Gives a name to write to. What is there in the end becomes the file, on the disk before it has its name.

    Where writing fails, nothing of it stays, and what the file held before is untouched. What a process leaves that is
    killed meanwhile is overwritten by the next one. Of several at once, one writes after the other.

    Raises:
        [`UsageError`]: If the disk is full, the folder read-only, or something else of this name in the way.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with written(path), locked(temporary):
        try:
            yield str(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file of text whole or not at all, also if the power fails. Errors as in [`whole_file`]."""
    with whole_file(path) as name, open(name, "w", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def written(path: str | Path) -> Iterator[None]:
    """
    Context in which a file, or what is in a folder, is written: that it can't be is said in one line.

    Raises:
        [`UsageError`]: In place of what Python, torch, safetensors or Arrow raise where the disk is full or read-only,
            or where something is in the way. It names the file, or if that isn't known the folder.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = why_unwritable(error, path)
        if reason is None:
            raise
        name = error.filename if isinstance(error, OSError) and error.filename is not None else path
        raise UsageError(f"cannot write {name}: {reason}") from error


def why_unwritable(error: BaseException, path: str | Path) -> str | None:
    """What keeps a file from being written, as the system says it, or `None` if the error is another one."""
    text = str(error)
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno is not None and error.errno in _UNWRITABLE else None
    if (number := re.search(r"\(os error (\d+)\)", text)) is not None:  # of safetensors
        return os.strerror(int(number[1])) if int(number[1]) in _UNWRITABLE else None
    if isinstance(error, RuntimeError) and re.search(r"unexpected pos|PytorchStreamWriter|write\(\): fd", text):
        said = re.search(r"failed with (.+)", text)  # torch's new format has forgotten the reason
        return said[1] if said is not None else _find_out(Path(path)) or "not all of it was taken; is the disk full?"
    return None


def _find_out(folder: Path) -> str | None:
    """Write some more, to see what happens."""
    folder = folder if folder.is_dir() else folder.parent
    try:
        with suppress(FileNotFoundError), tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
    except OSError as error:
        return os.strerror(error.errno or errno.EIO)
    return None
