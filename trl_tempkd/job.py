# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A training as a process among others: it ends with its launcher, and has its output folder to itself."""

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from .files import Unwritable, clear, written
from .locks import owned
from .processes import end_with_launcher


if TYPE_CHECKING:
    from transformers import TrainingArguments


def current_group() -> Any:
    """The group of torch's that this process is in, or `None`."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.group.WORLD
    return None


def end_group(held: Any = None) -> None:
    """
    Destroy the process group, and let go of it, so that its threads end. One of gloo's that drops a tensor when Python
    is gone already would take the process with it, by SIGABRT.

    Args:
        held (*optional*):
            The group as it was, if it may have been destroyed meanwhile. Who lets go of it last, be it with a trainer,
            waits for its threads and has Python's lock, which these need to drop a tensor: they must be at rest then.
    """
    import torch

    if held is None and current_group() is None:
        return
    time.sleep(0.5)
    if current_group() is not None:
        torch.distributed.destroy_process_group()
    group = torch.distributed.ProcessGroup
    # Functions of torch and DeepSpeed that are made while there is a group have it as a default, and None otherwise.
    # By type: what stands in for a deprecated name warns when `isinstance` looks at it
    for function in [each for each in gc.get_objects() if type(each) is FunctionType]:
        defaults = function.__defaults__ or ()
        if any(issubclass(type(value), group) for value in defaults):
            function.__defaults__ = tuple(None if issubclass(type(value), group) else value for value in defaults)
    gc.collect()  # a trainer and its wrapped model are in cycles


@contextmanager
def job(args: "TrainingArguments", writes: bool = True) -> Iterator[None]:
    """
    Context in which a run writes to its output folder. The first of its processes keeps other runs out.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Of the run.
        writes (`bool`, *optional*, defaults to `True`):
            Whether it saves anything there. Runs that don't may share a folder.

    Raises:
        [`UsageError`]: If another run writes to the folder, or nothing can be written there, now or later.
    """
    end_with_launcher()
    folder = str(args.output_dir)
    with written(folder), ExitStack() as held:
        if writes and args.process_index == 0:
            held.enter_context(owned(folder, "--output_dir"))
            clear(Path(folder))
        yield


@contextmanager
def prepared(dataset: Any) -> Iterator[None]:
    """
    Context in which a data set is mapped: `datasets` writes the result beside it, or into its own cache.

    Where the disk is full, that library leaves what it has written of it, under a name that it never looks at again.
    """
    import datasets

    files = getattr(dataset, "cache_files", None)
    folder = Path(files[0]["filename"]).parent if files else Path(datasets.config.HF_DATASETS_CACHE)
    try:
        with written(folder):
            yield
    except Unwritable:
        import psutil

        for file in psutil.Process().open_files():  # none of another process, which may be at it as well
            if Path(file.path).parent == folder.resolve() and Path(file.path).name.startswith("tmp"):
                Path(file.path).unlink(missing_ok=True)
        raise
