# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Rows that are longer than what a teacher behind a server can read, found before anything is trained."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from ..errors import UsageError
from ..row_formats import CONTEXTS, TEACHER_PROMPTS
from .own_prompt import read_rows


def check_lengths(dataset: Any, positions: int | None, options: Any, name: str, source: str) -> None:
    """
    Refuse rows that the teacher can't read. A stream can't be looked through, and its rows are refused in their step.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prepared rows.
        positions (`int`, *optional*):
            How many tokens the teacher reads, if that is known.
        options (`KDConfig`):
            Configuration of the run.
        name, source (`str`):
            What messages call the data and the teacher.

    Raises:
        [`UsageError`]: Names the first of these rows, its tokens, the limit and the way out.
    """
    if positions is None or not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
        return
    unread = options.generates_always and name == "train"  # the completions that the data have are asked about never
    own = CONTEXTS in dataset.column_names
    said = "with its `teacher_prompt` " if own else ""
    for number, tokens, prompt in _lengths(dataset):
        if not unread and tokens > positions:
            raise UsageError(too_long(f"Row {number} of the {name} data {said}has {tokens} tokens", positions, source))
        if options.generates and prompt + options.max_new_tokens > positions and prompt:
            what = (
                f"Row {number} of the {name} data has a `teacher_prompt` of {prompt} tokens, behind which a "
                f"completion has up to {options.max_new_tokens} (`max_new_tokens`)"
            )
            raise UsageError(too_long(what, positions, source))


def too_long(what: str, positions: int, source: str) -> str:
    """The sentence for it."""
    return (
        f"{what}, and {source} reads {positions} at most. Start it with a larger --max-model-len, shorten the row "
        "(`max_length` cuts the student's alone, not a `teacher_prompt`), or leave it out."
    )


def _lengths(dataset: Dataset) -> Iterator[tuple[int, int, int]]:
    """Of each row its number, and the tokens of its longest text as the teacher reads it and of its own prompt."""
    columns = [name for name in (CONTEXTS, TEACHER_PROMPTS) if name in dataset.column_names]
    columns += ["input_ids", "labels"] if CONTEXTS in columns else []
    columns.append("seq_lengths" if "seq_lengths" in dataset.column_names else "input_ids")
    tables = dataset.select_columns([*dict.fromkeys(columns)]).with_format("arrow").iter(1000)
    for number, row in enumerate(row for table in tables for row in table.to_pylist()):
        prompts = [len(prompt) for prompt in row.get(TEACHER_PROMPTS, ()) if prompt is not None]
        if CONTEXTS in row:
            texts = [len(text["input_ids"]) for text in read_rows(row)]
        else:
            texts = row["seq_lengths"] if "seq_lengths" in row else [len(row["input_ids"])]
        yield number, max(texts, default=0), max(prompts, default=0)
