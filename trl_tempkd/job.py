# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A training as a process among others: it ends with its launcher, and has its output folder to itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .files import written
from .locks import owned
from .processes import end_with_launcher


if TYPE_CHECKING:
    from transformers import TrainingArguments


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
        yield
