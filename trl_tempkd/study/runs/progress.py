# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A progress bar over cells, with a line above it for each that has ended."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """The bar; see [`bar`]."""

    def __init__(self, progress: Progress, total: int, completed: int):
        self.progress = progress
        self.task = progress.add_task("cells", total=total, completed=completed, state="")

    def say(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def update(self, state: str, completed: int | None = None) -> None:
        self.progress.update(self.task, state=state, completed=completed)

    def advance(self, state: str) -> None:
        self.progress.update(self.task, advance=1, state=state)


@contextmanager
def bar(what: str, total: int, completed: int = 0) -> Iterator[Bar]:
    """Context with a bar over so many cells, which are called `what`."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns) as progress:
        yield Bar(progress, total, completed)


def wide_console() -> Console:
    """The console, wide enough for a table where it is a file, which has room."""
    console = Console()
    return console if console.is_terminal else Console(width=160)
