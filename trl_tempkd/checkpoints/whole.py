# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Checkpoints on the disk: written aside and renamed when they are whole, checked before anything is read from them.

What a checkpoint consists of is in its `distillation.json`, which is written last: the files that a resume reads, and
their sizes. Beside that each file must have the form of its kind: JSON that parses, the header of safetensors, the
index at the end of a file that torch has saved. A bit that has flipped inside of a tensor isn't found.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import UsageError
from ..files import write_atomically


RECORD = "distillation.json"
STATE = "trainer_state.json"
WRITING = ".incomplete"  # in the output folder: what is being written or deleted
_CHECKED = 2**26  # bytes up to which the checksums that torch writes into a file are compared: it has to be read
_STATES = {STATE, "objective.json"}
_TENSORS = {".safetensors", ".bin", ".pt", ".pth", ".distcp", ".metadata"}
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "adapter_model.safetensors", "adapter_model.bin", "*/adapter_model.safetensors", "pytorch_model_fsdp*",
    "global_step*",
)  # fmt: skip


def step_of(folder: Path) -> int | None:
    """The optimizer step in the name of a checkpoint's folder, `None` if it isn't named as one."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found[1]) if found else None


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """The folders with the name of a checkpoint, whole or not, the earliest step first."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir() and step_of(path) is not None]
    return sorted(folders, key=lambda path: step_of(path) or 0)


def _is_read(name: str) -> bool:
    """Whether a resume reads the file of that name, relative to its checkpoint."""
    path = Path(name)
    if path.name == "training_args.bin":
        return False
    return path.name in {*_STATES, "latest", ".metadata"} or path.suffix in _TENSORS or name.endswith(".index.json")


def sizes_of(folder: Path) -> dict[str, int]:
    """The files of a checkpoint that a resume reads, with their sizes in bytes."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return {name: (folder / name).stat().st_size for name in names if _is_read(name)}


def record_of(folder: Path) -> dict[str, Any] | None:
    """What `distillation.json` says of a checkpoint, or `None` if it has none: an earlier version wrote it."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def written_under(folder: Path) -> str | None:
    """What can go on from a checkpoint: `"DeepSpeed"`, `"FSDP"`, `"one process or DDP"`; `None` of a model alone."""
    if _any(folder, ["global_step*"]):
        return "DeepSpeed"
    if _any(folder, ["pytorch_model_fsdp*"]):
        return "FSDP"
    return "one process or DDP" if _any(folder, ["optimizer*", "scheduler.pt", "rng_state*.pth"]) else None


def problem_of(folder: str | Path) -> str | None:
    """What is wrong with a checkpoint, in a few words that begin with the file, or `None` if it is whole."""
    folder = Path(folder)
    if not (folder / STATE).is_file():
        return f"{STATE} is missing"
    try:
        record = record_of(folder)
        listed = None if record is None else dict(record["files"])
    except (ValueError, KeyError, TypeError):
        return f"{RECORD} can't be read"
    missing = _missing(folder) if listed is None else [name for name in listed if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    for name, size in sizes_of(folder).items():
        if (problem := _broken(folder / name, size, (listed or {}).get(name))) is not None:
            return f"{name} {problem}"
    return None


def _any(folder: Path, patterns: Iterable[str]) -> bool:
    return any(path for pattern in patterns for path in folder.glob(pattern))


def _missing(folder: Path) -> list[str]:
    """What isn't there, of a checkpoint that doesn't say what it consists of."""
    if not _any(folder, _WEIGHTS):
        return ["model.safetensors"]
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # it is said that it can't be read
        if lacking := sorted(shard for shard in shards if not (folder / shard).is_file()):
            return lacking
    under = written_under(folder)
    if under is None:
        return []  # written with `save_only_model`
    wanted = {"rng_state.pth": ["rng_state*.pth"]}
    if under == "DeepSpeed":
        wanted["latest"] = ["latest"]
    else:
        wanted["optimizer.pt"] = ["optimizer.pt", "optimizer.bin", "optimizer_*"]
        wanted["scheduler.pt"] = ["scheduler.pt"]
    return [name for name, patterns in wanted.items() if not _any(folder, patterns)]


def _broken(path: Path, size: int, recorded: int | None) -> str | None:
    """What is wrong with a file that is there."""
    if size == 0 and recorded != 0:
        return "is empty"
    if path.suffix != ".json" and recorded is not None and size != recorded:
        return f"has {size} bytes of {recorded}"
    try:
        if path.suffix == ".json":
            read = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(read, dict) or (path.name == STATE and not isinstance(read.get("global_step"), int)):
                return "has something else than a checkpoint's"
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):  # reads the header, and compares it with the size of the file
                pass
        elif path.suffix in (".pt", ".pth", ".bin"):
            with path.open("rb") as file:
                start = file.read(2)
            if start != b"\x80\x02":  # of a pickle, torch's old format
                with zipfile.ZipFile(path) as archive:  # its directory is at the end
                    if start != b"PK" or (size <= _CHECKED and archive.testzip() is not None):
                        return "was damaged"
    except (ValueError, SafetensorError, zipfile.BadZipFile):
        return "was cut off or damaged"
    except OSError as error:
        return f"can't be read: {error.strerror or error}"
    return None


def newest_whole(output_dir: str | Path) -> tuple[Path | None, dict[str, str]]:
    """
    The newest checkpoint of a folder that is whole.

    Returns:
        `tuple`: Its folder, or `None`, and what is wrong with each newer one, by name.
    """
    passed_over: dict[str, str] = {}
    for folder in reversed(checkpoints_in(output_dir)):
        problem = problem_of(folder)
        if problem is None:
            return folder, passed_over
        passed_over[folder.name] = problem
    return None, passed_over


def find_checkpoint(resume: str | bool | None, output_dir: str | Path) -> tuple[str | None, dict[str, str]]:
    """
    The checkpoint to go on from.

    Args:
        resume (`str`, `bool` or `None`):
            A folder, or `True`, `"true"` or `"auto"` for the newest one in `output_dir` that is whole.
        output_dir (`str`):
            Where the run writes its checkpoints.

    Returns:
        `tuple`: Its folder, or `None` if there is no checkpoint at all, and what is wrong with those that were passed
            over, by name.

    Raises:
        [`UsageError`]: If the folder isn't there or isn't whole, or if there are checkpoints and none is whole.
    """
    wanted = str(resume).lower()
    if wanted in ("none", "false", ""):
        return None, {}
    if wanted not in ("true", "auto"):
        if not Path(str(resume)).is_dir():
            raise UsageError(f"no such checkpoint: {resume} (`resume_from_checkpoint`)")
        if (problem := problem_of(str(resume))) is not None:
            raise UsageError(
                f"the checkpoint {resume} (`resume_from_checkpoint`) isn't whole: {problem}. Name another one, or say "
                "auto for the newest that is whole."
            )
        return str(resume), {}
    found, passed_over = newest_whole(output_dir)
    if found is None and passed_over:
        raise UsageError(
            f"no checkpoint in {output_dir} is whole ({said(passed_over)}), and `resume_from_checkpoint` is {resume}. "
            "Restore one of them, or delete them to start from the beginning."
        )
    return (None if found is None else str(found)), passed_over


def said(passed_over: dict[str, str]) -> str:
    """Damaged checkpoints, as part of a sentence."""
    return ", ".join(f"{name}: {problem}" for name, problem in passed_over.items())


def publish(written: Path, final: Path, description: dict[str, Any]) -> None:
    """
    Give a checkpoint that has been written aside its name, once everything in it is on the disk.

    Args:
        written, final (`pathlib.Path`): its folder until now, and from now on; one that is there is replaced.
        description (`dict`): what [`describe`] says of the run.
    """
    for path in written.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    record = {"format": 1, **description, "files": sizes_of(written)}
    write_atomically(written / RECORD, json.dumps(record, indent=1) + "\n")
    if final.exists():
        shutil.move(final, written.with_name(f"{final.name}.replaced"))
    shutil.move(written, final)  # a rename; a copy where the file system of a cloud can't rename folders
    clear(final.parent)


def remove(folder: Path) -> None:
    """Delete a checkpoint. It loses its name first, so that no part of it is ever taken for a checkpoint."""
    (folder.parent / WRITING).mkdir(exist_ok=True)
    shutil.move(folder, folder.parent / WRITING / f"{folder.name}.deleted")
    clear(folder.parent)


def clear(output_dir: Path) -> None:
    """Delete what a job that was stopped has left unfinished in its output folder, and name what it has finished."""
    for written in checkpoints_in(output_dir / WRITING):
        if (written / RECORD).is_file() and not (output_dir / written.name).exists():
            shutil.move(written, output_dir / written.name)
    shutil.rmtree(output_dir / WRITING, ignore_errors=True)


def rotate(output_dir: Path, limit: int | None, kept: Iterable[Path]) -> None:
    """
    Delete checkpoints until there are at most `limit`: first those that aren't whole, then the oldest.

    Args:
        output_dir (`pathlib.Path`): their folder.
        limit (`int`, *optional*): `save_total_limit`. `None` and 0 keep all.
        kept (`Iterable[pathlib.Path]`): what is never deleted: the one just written, and the best one.
    """
    folders = checkpoints_in(output_dir)
    if not limit or limit < 0 or len(folders) <= limit:
        return
    names = {path.name for path in kept}
    others = [folder for folder in folders if folder.name not in names]
    others.sort(key=lambda folder: (problem_of(folder) is None, folder.stat().st_mtime, step_of(folder)))
    for folder in others[: len(folders) - limit]:
        remove(folder)
