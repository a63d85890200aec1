# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Locks on files, which the kernel takes from a process that is gone, however it went.

They keep apart the processes of a machine, and of several that share a file system that has locks, as NFS does. Where
there are none, as on Windows, nobody is kept out.
"""

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from .errors import UsageError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OWNER = "_in_use.json"  # the lock of a folder. What starts so is never sent to the Hub.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}  # on this file system

_held: set[int] = set()  # descriptors of the files that this process has locked
_folders: set[Path] = set()  # those that it owns

logger = logging.getLogger(__name__)


def _release_in_fork() -> None:
    # A fork has the locks too, and would keep them when this process is gone: the workers of a data loader, say
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()
    _folders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_fork)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """
    Context that has the lock of a file, which is made if there is none and may be deleted or renamed inside.

    Args:
        path (`pathlib.Path`):
            The file.
        wait (`bool`, *optional*, defaults to `True`):
            Whether to wait while somebody else has it, be it in this process.

    Returns:
        `bool`: Whether this context has it, which without waiting it may not.

    Raises:
        `OSError`: If the file can't be made or opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield True
        return
    descriptor = _lock(path, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _unlock(descriptor)


def _lock(path: Path, wait: bool) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BlockingIOError:
            _unlock(descriptor)
            return None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                _warn_once(path.parent)
                return descriptor
            _unlock(descriptor)
            raise
        _unlock(descriptor)  # whoever had it before has deleted or renamed it


@cache
def _warn_once(folder: Path) -> None:
    logger.warning(f"{folder} is on a file system without locks: no other process is kept out of it.")


def _unlock(descriptor: int) -> None:
    if descriptor in _held:  # not in a fork
        _held.discard(descriptor)
        os.close(descriptor)


@contextmanager
def owned(folder: str | Path, option: str) -> Iterator[None]:
    """
    Context in which no other process gets this folder. It is made if there is none, and may be taken again inside.

    Args:
        folder (`str` or `pathlib.Path`):
            The folder.
        option (`str`):
            The option that names it, for the message.

    Raises:
        [`UsageError`]: If another process has it, or it can't be written to.
    """
    path = Path(folder).resolve()
    if path in _folders:
        yield
        return
    with ExitStack() as held:
        try:
            free = held.enter_context(locked(path / OWNER, wait=False))
            if free:
                (path / OWNER).write_text(json.dumps(_this_process()), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}; give another {option}") from error
        if not free:
            raise UsageError(
                f"{folder} is in use by {_owner(path)}: wait until it is finished, end it, or give another {option}"
            )
        _folders.add(path)
        held.callback(_leave, path)
        yield


def _leave(path: Path) -> None:
    if path in _folders:  # not in a fork
        _folders.discard(path)
        (path / OWNER).unlink(missing_ok=True)


def _this_process() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just about to say so, or to leave
        return "another process"
