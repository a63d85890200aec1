# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Names of files, folders and of the Hub, looked at before anything is loaded from or written to them."""

import os
import tempfile
from pathlib import Path

from .errors import UsageError
from .names import did_you_mean


# The files that hold rows, and what reads them in `datasets`
BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}

PROBE_SECONDS = 10.0  # for the Hub's first answer; one that is slower is asked anyway


def check_new(name: str, option: str) -> None:
    """Stop at a folder that something is in: it may be somebody's."""
    path = Path(name).expanduser()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UsageError(f"--{option} {name} is there already, and isn't empty. Name another folder, or delete it.")
    # It is written beside, and put in its place when it is whole
    _try_to_write(path.absolute().parent, f"{name} (--{option})", "give another folder")


def check_path(name: str, what: str) -> None:
    """Stop at a name that can only be a path, of something that is not there."""
    path = Path(name).expanduser()
    if path.exists():
        return
    # A Hub name is `name` or `owner/name`, so a path is what starts like one, goes deeper or ends in a file type.
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix in BUILDERS:
        raise UsageError(f"no such {what}: {name}{_sibling(path)}")


def check_model_name(name: str, revision: str | None, option: str) -> None:
    """
    Stop at the name of a model that is neither here nor, as far as can be known, on the Hub.

    A name that may be of the Hub is given up at once where the Hub is out of reach and the cache has nothing of it:
    the Hub's own client would ask again and again for half a minute.

    Args:
        name (`str`):
            A folder, or a name on the Hub.
        revision (`str`, *optional*):
            Its revision there.
        option (`str`):
            What the name was given for, for the message.
    """
    check_path(name, f"model ({option})")
    path = Path(name).expanduser()
    if path.is_file():
        raise UsageError(f"cannot load the model {name!r} ({option}): it is a file, and a model is a folder")
    problem = None if path.exists() else _hub_name_problem(name, revision)
    if problem is not None:
        raise UsageError(f"cannot load the model {name!r} ({option}): {problem}{_sibling(path)}")


def _hub_name_problem(name: str, revision: str | None) -> str | None:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    files = ("config.json", "adapter_config.json")
    try:
        if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files):
            return None
    except HFValidationError as error:
        return f"it is no folder here, and no name on the Hub can be so: {error}"
    if constants.HF_HUB_OFFLINE:
        reason: str | None = "the Hub is switched off (HF_HUB_OFFLINE)"
    else:
        reason = hub_problem()
    return reason and f"it is no folder here, and there is nothing of it in the cache; {reason}"


def hub_problem() -> str | None:
    """Why the Hub can't be reached, or `None`. It is asked once, where its own client would try six times."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # of httpx or of httpx2, as the version of huggingface_hub has it
        if type(error).__name__ == "ConnectError":  # no such host, no route, refused: not what a slow network does
            return f"the Hub can't be reached ({constants.ENDPOINT}: {error})"
    return None


def check_writable(path: str | Path, what: str) -> None:
    """
    Stop at a folder that can't be written to, be it there or to be made.

    Args:
        path (`str` or `pathlib.Path`):
            The folder.
        what (`str`):
            The option that it comes from, for the message.
    """
    _try_to_write(Path(path).absolute(), f"{path} ({what})", "give another folder")


def check_file_writable(path: str | Path, what: str) -> None:
    """Stop at a file that can't be written: as [`check_writable`] of its folder."""
    if Path(path).is_dir():
        raise UsageError(f"cannot write to {path} ({what}): it is a folder; give the name of a file")
    _try_to_write(Path(path).absolute().parent, f"{path} ({what})", "give another file")


def _try_to_write(folder: Path, what: str, way_out: str) -> None:
    while not folder.is_symlink() and not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent  # what isn't there is made in what is
    try:
        # Permissions say little, root having all of them on a read-only disk too: whether a file can be made counts
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or str(error)
        raise UsageError(f"cannot write to {what}: {folder}: {reason}; {way_out}") from error


def _sibling(path: Path) -> str:
    """Help with a mistyped path: the closest name in the part of it that exists."""
    wanted, folder = path.name, path.parent
    while not folder.is_dir() and folder != folder.parent:
        wanted, folder = folder.name, folder.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return did_you_mean(wanted, names)


def output_file(folder: str | None, file: str, name: str) -> str:
    """
    The file that a command writes: by its usual name in `output_dir`, or as `output` says.

    Raises:
        [`UsageError`]: If both are given.
    """
    if folder is None:
        return file
    usual = str(Path(folder, name))
    if file not in (name, usual):
        raise UsageError(f"`output_dir` is {folder!r} and `output` {file!r}: give one of them, a folder or a file.")
    return usual
