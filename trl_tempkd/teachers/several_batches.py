# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Batches for several teachers: each reads one of its own rows, and what it says is put beside the student's."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..row_formats import CONTEXTS, ROUTE, TEACHER_QUESTION
from ..vocabularies.alignment import Question
from .aligned import question_of
from .base import Batch, Collator
from .columns import predicting, tokens_of
from .own_prompt import Known, selected, targets_of


ROUTED = "routed_batches"  # in a batch: those of each teacher


@dataclass
class SubBatch:
    """
    The rows of a batch that one teacher has. No container, so that it is passed on as it is.

    Attributes:
        inputs (`dict`):
            Their batch, without labels.
        positions, theirs (`torch.Tensor` of shape `(K,)`):
            Where the flattened batch, and theirs, predict the tokens with a label.
        known (*optional*):
            What the teacher says at these, if it has been asked before.
    """

    inputs: Batch
    positions: Tensor
    theirs: Tensor
    known: Known | None = None


@dataclass(frozen=True)
class RoutedBatches:
    """The batches of the teachers, by name. No container, so that it is passed on as it is."""

    batches: dict[str, SubBatch]


@dataclass(frozen=True)
class Asked:
    """What the rows of a batch ask teachers with other tokenizers, for those that are completed in their place."""

    questions: list[Question | None]


def part_of(name: str, batch: Batch) -> Batch:
    """What one of the teachers reads of a batch."""
    return batch[ROUTED].batches[name].inputs


@dataclass(frozen=True)
class Routed:
    """What is known of the teachers, each at the `positions` of its own rows."""

    known: dict[str, tuple[Tensor, Known]]


@dataclass(frozen=True)
class Mixed:
    """What is known of the teachers, each at every position. Meaningless where there is no label."""

    known: dict[str, Known]

    @classmethod
    def of(cls, known: dict[str, tuple[Tensor, Known]], count: int) -> "Mixed":
        """The same of `count` positions, from those of the tokens with a label."""
        placed = {}
        for name, (positions, found) in known.items():
            source = positions.new_zeros(count).index_copy_(0, positions, torch.arange(len(positions)).to(positions))
            placed[name] = selected(found, source)
        return cls(placed)


class SeveralCollator:
    """
    What another collator makes of some rows, and a batch for each teacher of the rows that are its own.

    Args:
        collator (`Callable`):
            The other collator. It keeps the order of the rows.
        own (`dict[str, Callable]`):
            The collators of the teachers, in the order of their numbers.
        routed (`bool`):
            Whether a row has one of them, by its number, or all.
    """

    def __init__(self, collator: Collator, own: dict[str, Collator], routed: bool):
        self.collator, self.own, self.routed = collator, own, routed

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        numbers = [row.get(ROUTE, 0) for row in examples]
        rows = [{name: row[name] for name in row if name != ROUTE} for row in examples]
        batch = self.collator([{name: row[name] for name in row if name != CONTEXTS} for row in rows])
        counts = [int(predicting(tokens_of(row)).sum()) for row in rows]
        positions = targets_of(batch["labels"])
        if len(positions) != sum(counts):
            raise UsageError(
                f"The data collator made {len(positions)} tokens with a label of {sum(counts)}: with `teachers` "
                "it must keep every label. Use TRL's own."
            )
        parts, found = positions.split(counts), {}
        for number, (name, collate) in enumerate(self.own.items()):
            mine = [i for i, other in enumerate(numbers) if not self.routed or other == number]
            own = collate([rows[i] for i in mine] or [_nothing(rows[0])])
            theirs = targets_of(own.pop("labels"))
            if not self.routed and not len(theirs):
                theirs = theirs.new_zeros(1)  # of a mixture every position has a row, whatever it is
            at = torch.cat([positions[:0], *(parts[i] for i in mine)])
            found[name] = SubBatch(own, at, theirs)
        batch[ROUTED] = RoutedBatches(found)
        if any(row.get(TEACHER_QUESTION) is not None for row in rows):
            batch[TEACHER_QUESTION] = Asked([question_of(row.get(TEACHER_QUESTION)) for row in rows])
        return batch


def without_contexts(collate: Collator, rows: list[dict[str, Any]]) -> Batch:
    """The batch of a teacher that reads what the student does, whatever others read."""
    return collate([{name: row[name] for name in row if name != CONTEXTS} for row in rows])


def _nothing(row: dict[str, Any]) -> dict[str, Any]:
    """What a teacher reads that has no row, where all processes read together: a token, which isn't asked about."""
    nothing: dict[str, Any] = {"input_ids": list(row["input_ids"][:1]), "labels": [-100]}
    if TEACHER_QUESTION in row:
        nothing[TEACHER_QUESTION] = None
    return {**nothing, "seq_lengths": [1]} if "seq_lengths" in row else nothing
