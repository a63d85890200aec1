# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Batches as the data collator makes them <-> the rows that they hold, and the prompt that a row carries."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch

from ..errors import UsageError
from ..row_formats import CONTEXTS, PROMPTS, ROUTE, TEACHER_PROMPTS, TEACHER_QUESTION, contexts_of
from ..vision import PICTURED, Pictured, packed, unpacked
from ..vocabularies.alignment import Question


IGNORED = -100  # the label of a token that isn't trained on


class Row(NamedTuple):
    """
    One sequence, without padding.

    Attributes:
        input_ids (`list[int]` of length `L`):
            Its tokens.
        labels (`list[int]` of length `L`):
            The same tokens, or -100 where they aren't trained on.
        prompt_ids (`list[int]`, *optional*):
            The prompt that it carries. It need not be the beginning of `input_ids`.
        context (`list[int]`, *optional*):
            What the teacher reads before the first token that is trained on, if that is something else.
        teacher_ids (`list[int]`, *optional*):
            What it reads before another completion.
        route (`int`, *optional*):
            The number of its teacher, of several.
        question ([`Question`], *optional*):
            What a teacher with another tokenizer is asked.
        pictured ([`~trl_tempkd.vision.Pictured`], *optional*):
            What the prompt was made of, where it has images.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int] | None = None
    context: list[int] | None = None
    teacher_ids: list[int] | None = None
    route: int | None = None
    question: Question | None = None
    pictured: Pictured | None = None

    @property
    def prompt(self) -> list[int]:
        """What is completed in its place, empty if there is none. A row that carries nothing has only its labels."""
        if self.prompt_ids is not None:
            return self.prompt_ids
        return prompt_before(self.input_ids, [label != IGNORED for label in self.labels])

    @property
    def targets(self) -> int:
        """Number of tokens that the loss sees: all with a label but the first, which nothing predicts."""
        return sum(label != IGNORED for label in self.labels[1:])


def completed(prompt: list[int], completion: list[int], of: Row | None = None) -> Row:
    """The row of which `completion` alone is trained on, with what the row in whose place it is has for a teacher."""
    row = Row(prompt + completion, [IGNORED] * len(prompt) + completion)
    if of is None:
        return row
    question = None if of.question is None else of.question._replace(start=len(prompt), skip=0)
    return row._replace(context=of.teacher_ids, route=of.route, question=question, pictured=of.pictured)


def prompt_before(ids: list[int], trained: list[bool]) -> list[int]:
    """What stands before the last run of trained tokens: the context of the last turn. Empty if there is none."""
    if True not in trained:
        return []
    end = len(trained) - trained[::-1].index(True)
    before = [i for i in range(end) if not trained[i]]
    return ids[: before[-1] + 1] if before else []


@dataclass(frozen=True)
class Carried:
    """
    What the texts of a batch carry, in their order. No container, so that it is passed on as it is.

    Attributes:
        prompts (`list[list[int]]`):
            The prompt of each, empty if there is none.
        routes (`list[int]`, *optional*):
            The number of each one's teacher.
        contexts, teacher_prompts (`list[list[int]]`, *optional*):
            What the teacher reads in each, if that is something else, before what is there and before a completion.
        pictured (`list[Pictured | None]`, *optional*):
            What each prompt was made of, where there are images.
    """

    prompts: list[list[int]]
    contexts: list[list[int]] | None = None
    routes: list[int] | None = None
    teacher_prompts: list[list[int]] | None = None
    pictured: list[Pictured | None] | None = None


class CarryingCollator:
    """
    What another collator makes of some rows, and what they carry.

    Args:
        collator (`Callable`):
            The other collator. It keeps the order of the rows.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Any]):
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        own = (PROMPTS, TEACHER_PROMPTS)
        batch = self.collator([{name: row[name] for name in row if name not in own} for row in examples])
        if PROMPTS in examples[0]:
            prompts, of_teacher = (_texts(examples, name) for name in own)
            contexts = None
            if CONTEXTS in examples[0]:
                contexts = [context for row in examples for context in contexts_of(row[CONTEXTS])]
            routes = [int(row[ROUTE]) for row in examples] if ROUTE in examples[0] else None
            batch[PROMPTS] = Carried(prompts or [], contexts, routes, of_teacher)
        elif PICTURED in batch:
            asked = batch.pop(PICTURED)
            batch[PROMPTS] = Carried(asked.prompts, pictured=asked.pictured)
        return batch


def _texts(examples: list[dict[str, Any]], name: str) -> list[list[int]] | None:
    if name not in examples[0]:
        return None
    texts = chain.from_iterable(row[name] for row in examples)
    return [[int(token) for token in each] for each in texts if each is not None]


def rows_of(batch: dict[str, Any]) -> list[Row]:
    """
    The sequences of a batch, in its order, without their padding, with what they carry.

    Padding is what the attention mask leaves out. In a padding-free batch, which has none, a sequence starts where the
    positions start anew, and one that has neither a label nor a prompt is padding, or has nothing to be learnt from.

    Raises:
        `ValueError`: If the batch has neither `attention_mask` nor `position_ids`, or fewer sequences than prompts.
    """
    carried = batch.get(PROMPTS)
    if "attention_mask" in batch:
        rows = list(_padded_rows(batch))
    elif "position_ids" in batch:
        rows = list(_padding_free_rows(batch))
    else:
        raise UsageError(
            "With `lmbda` or `seq_kd` the data collator must give `attention_mask`, or `position_ids` without "
            f"padding, beside `input_ids` and `labels`, got {', '.join(batch)}."
        )
    if carried is not None:
        if len(rows) < len(carried.prompts):
            raise UsageError(
                f"With `lmbda` or `seq_kd` the data collator must keep every row, in their order, but it made "
                f"{len(rows)} of {len(carried.prompts)}."
            )
        # What comes behind them is padding
        for i, prompt in enumerate(carried.prompts):
            rows[i] = rows[i]._replace(prompt_ids=prompt)
        for i, pictured in enumerate(carried.pictured or []):
            rows[i] = rows[i]._replace(pictured=pictured)
        for i, route in enumerate(carried.routes or []):
            rows[i] = rows[i]._replace(route=route)
        if carried.contexts is not None:
            others = carried.teacher_prompts or carried.contexts
            for i, (context, other) in enumerate(zip(carried.contexts, others, strict=True)):
                rows[i] = rows[i]._replace(context=context, teacher_ids=other)
    if TEACHER_QUESTION in batch:
        questions = batch[TEACHER_QUESTION].questions
        rows = [row._replace(question=question) for row, question in zip(rows, questions, strict=False)]
    return rows if "attention_mask" in batch else [row for row in rows if row.targets or row.prompt]


def _padded_rows(batch: dict[str, Any]) -> Iterator[Row]:
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
        yield Row(ids[mask].tolist(), labels[mask].tolist())


def _padding_free_rows(batch: dict[str, Any]) -> Iterator[Row]:
    for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
        starts = (positions == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            row = Row(ids[start:end].tolist(), labels[start:end].tolist())
            # The collator drops the first label, which nothing predicts. It tells text without a prompt from one with.
            if row.labels[1:2] not in ([], [IGNORED]):
                row.labels[0] = row.input_ids[0]
            yield row


def split_evenly(rows: list[Row], parts: int) -> list[list[Row]]:
    """
    The rows in `parts` groups of nearly equal count, the longest together, so that little is lost to padding.

    No group is empty: where there are too few rows, some are put in that aren't trained on.
    """
    rows = sorted(rows, key=lambda row: -len(row.input_ids))
    missing = parts - len(rows)
    rows += [Row([0, 0], [IGNORED, IGNORED])] * missing
    bounds = [round(part * len(rows) / parts) for part in range(parts + 1)]
    return [rows[start:end] for start, end in pairwise(bounds)]


def join(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows as flat tensors, to be saved, with what they have for a teacher."""
    tensors = {
        "input_ids": torch.tensor([i for row in rows for i in row.input_ids], dtype=torch.int32),
        "trained": torch.tensor([label != IGNORED for row in rows for label in row.labels], dtype=torch.bool),
        "lengths": torch.tensor([len(row.input_ids) for row in rows], dtype=torch.int32),
        "routes": torch.tensor([-1 if row.route is None else row.route for row in rows], dtype=torch.int32),
        "contexts": torch.tensor([i for row in rows for i in row.context or []], dtype=torch.int32),
        # -1 where the teacher reads what the student does
        "context_lengths": torch.tensor(
            [-1 if row.context is None else len(row.context) for row in rows], dtype=torch.int32
        ),
    }
    if any(row.question is not None for row in rows):  # of several teachers some may have none, which is -1
        asked = [i for row in rows if row.question for i in row.question.teacher_ids]
        numbers = [
            [-1, 0, 0, 0] if (q := row.question) is None else [len(q.teacher_ids), q.start, q.skip, int(q.chat)]
            for row in rows
        ]
        tensors["asked_ids"] = torch.tensor(asked, dtype=torch.int32)
        tensors["asked"] = torch.tensor(numbers, dtype=torch.int32)
    if any(row.pictured is not None for row in rows):
        tensors |= packed([row.pictured for row in rows])
    return tensors


def split(tensors: dict[str, torch.Tensor]) -> list[Row]:
    """The inverse of `join`."""
    lengths = tensors["lengths"].tolist()
    labels = tensors["input_ids"].masked_fill(~tensors["trained"], IGNORED)
    pairs = zip(tensors["input_ids"].split(lengths), labels.split(lengths), strict=True)
    rows = [Row(ids.tolist(), row_labels.tolist()) for ids, row_labels in pairs]
    if "contexts" in tensors:  # an earlier version has none
        rows = _with_contexts(rows, tensors)
    pictures = unpacked(tensors)
    if pictures is not None:
        rows = [row._replace(pictured=pictured) for row, pictured in zip(rows, pictures, strict=True)]
    if "asked" not in tensors:
        return rows
    parts = tensors["asked_ids"].split(tensors["asked"][:, 0].clamp(min=0).tolist())
    numbers = tensors["asked"].tolist()
    return [
        row if size < 0 else row._replace(question=Question(ids.tolist(), start, skip, bool(chat)))
        for row, ids, (size, start, skip, chat) in zip(rows, parts, numbers, strict=True)
    ]


def _with_contexts(rows: list[Row], tensors: dict[str, torch.Tensor]) -> list[Row]:
    """Rows with the number of their teacher and what it reads, where there is such."""
    routes, sizes = tensors["routes"].tolist(), tensors["context_lengths"].tolist()
    contexts = tensors["contexts"].split([max(size, 0) for size in sizes])
    return [
        row._replace(route=None if route < 0 else route, context=None if size < 0 else context.tolist())
        for row, route, size, context in zip(rows, routes, sizes, contexts, strict=True)
    ]
