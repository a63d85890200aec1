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


# A disk that is full or takes no such file; then what may be said of a file that is read, too
_FULL = "ENOSPC EDQUOT EFBIG EROFS EEXIST ENOTEMPTY"
_IN_THE_WAY = "EACCES EPERM ENOTDIR EISDIR ENAMETOOLONG ELOOP EIO ENODEV ESTALE"
_UNWRITABLE = {getattr(errno, name) for name in f"{_FULL} {_IN_THE_WAY}".split() if hasattr(errno, name)}

# What SQLite says, whoever passes it on
_SQLITE = re.compile(
    "database or disk is full|disk I/O error|attempt to write a readonly database|unable to open database"
)

# Where libraries write that are told so by a variable alone
_CACHES = ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_HOME", "XDG_CACHE_HOME")


class Unwritable(UsageError):
    """The disk is full or read-only, or something is in the way."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[str]:
    """
    Gives a name to write to. What is there in the end becomes the file, on the disk before it has its name.

    Where writing fails, nothing of it stays, and what the file held before is untouched. What a process leaves that is
    killed meanwhile is overwritten by the next one. Of several at once, one writes after the other. A link stays one,
    and a device or a pipe is written to as it is.

    Raises:
        [`Unwritable`]: If the disk is full, the folder read-only, or something else of this name in the way.
    """
    shown, path = path, Path(path).resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        with written(shown, exactly=True):
            yield str(path)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with written(shown, exactly=True), locked(temporary):
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


def clear(folder: Path) -> None:
    """
    Delete what safetensors writes aside, and a killed process leaves, in a folder that nobody else writes to. As each
    has another name, they would pile up.
    """
    for path in folder.glob(".tmp??????"):
        if path.name[4:].isalnum() and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def written(path: str | Path | None = None, exactly: bool = False) -> Iterator[None]:
    """
    Context in which something is written: that it can't be is said in one line.

    Args:
        path (`str` or `pathlib.Path`, *optional*):
            What is written, or the folder that it is written to. It is named where the error doesn't say which file.
        exactly (`bool`, *optional*, defaults to `False`):
            Whether to name it in any case.

    Raises:
        [`Unwritable`]: In place of what Python, torch, safetensors or Arrow raise where the disk is full or read-only,
            or where something is in the way.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = why_unwritable(error, path)
        if reason is None:
            raise
        named = error.filename if isinstance(error, OSError) else None
        name = path if exactly or named is None or isinstance(named, int) else named
        variable = None if name is None else _variable(str(name))
        way_out = "" if variable is None else f"; set {variable} to another folder"
        raise Unwritable(f"cannot write{'' if name is None else f' {name}'}: {reason}{way_out}") from error


def _variable(name: str) -> str | None:
    """What says where a cache is, of which this is a file, or a folder on the way there."""
    path = Path(name).absolute()
    for variable in _CACHES:
        told = os.environ.get(variable) or ("~/.cache" if variable == _CACHES[-1] else None)
        if told is not None:
            folder = Path(told).expanduser().absolute()
            if path.is_relative_to(folder) or folder.is_relative_to(path):
                return variable
    return None


def why_unwritable(error: BaseException, path: str | Path | None = None) -> str | None:
    """What keeps a file from being written, as the system says it, or `None` if the error is another one."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno is not None and error.errno in _UNWRITABLE else None
    text = str(error)
    if (number := re.search(r"\(os error (\d+)\)", text)) is not None:  # of safetensors
        return os.strerror(int(number[1])) if int(number[1]) in _UNWRITABLE else None
    if type(error).__name__ == "OperationalError" and (said := _SQLITE.search(text)) is not None:
        return _find_out(path) or said[0]
    if isinstance(error, RuntimeError) and re.search(r"unexpected pos|PytorchStreamWriter|write\(\): fd", text):
        said = re.search(r"failed with (.+)", text)  # torch's new format has forgotten the reason
        return said[1] if said is not None else _find_out(path) or "not all of it was taken; is the disk full?"
    return None if error.__cause__ is None else why_unwritable(error.__cause__, path)  # of `datasets`


def _find_out(path: str | Path | None) -> str | None:
    """Write some more, to see what happens."""
    folder = Path(path or ".")
    folder = folder if folder.is_dir() else folder.parent
    try:
        with suppress(FileNotFoundError), tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
    except OSError as error:
        return os.strerror(error.errno or errno.EIO)
    return None
