# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The rows of a batch as a teacher with another tokenizer reads them, beside the student's."""

from dataclasses import dataclass
from typing import Any

import torch

from ..losses import Stretches
from ..row_formats import TEACHER_OFFSETS, TEACHER_QUESTION, TEACHER_TOKENS
from ..vocabularies.alignment import Alignment, Question, Reading, Side, match, read
from .base import Batch, Collator


_OWN = (TEACHER_QUESTION, TEACHER_TOKENS, TEACHER_OFFSETS)


class Aligner:
    """Aligns rows, once both tokenizers are known. It goes to the processes that read the data, and holds no model."""

    def __init__(self) -> None:
        self.sides: tuple[Side, Side] | None = None
        self.longest: int | None = None

    def ready(self, student: Side, teacher: Side, longest: int | None) -> None:
        self.sides, self.longest = (student, teacher), longest

    def read(self, ids: list[int], question: Question) -> Reading:
        assert self.sides is not None
        return read(ids, question, *self.sides, self.longest)

    def __call__(self, ids: list[int], question: Question, reading: Reading | None = None) -> Alignment:
        assert self.sides is not None
        return match(ids, question, self.sides[0], self.read(ids, question) if reading is None else reading)


@dataclass(frozen=True)
class Pieces:
    """
    What the teacher is given of a batch, and which of its positions belong to which of the student's.

    Attributes:
        inputs (`dict`): its own batch, of shape `(B_t, L_t)`, padded on the right.
        student, teacher (`torch.Tensor` of shape `(M,)`): pairs of positions in both batches, flattened.
        offsets (`list[tuple[int, int]]`): where each row begins in both.
    """

    inputs: Batch
    student: torch.Tensor
    teacher: torch.Tensor
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class Aligned:
    """
    The rows of a batch as the teacher reads them. No container, so that it is passed on as it is.

    Attributes:
        questions (`list[Question | None]`): what each asks; `None` for one that fills a batch up.
        alignments (`list[Alignment]`): where both agree.
        starts (`list[int]`): where each row begins in the student's flattened batch.
    """

    questions: list[Question | None]
    alignments: list[Alignment]
    starts: list[int]

    @property
    def texts(self) -> list[list[int]]:
        """The teacher's rows. There is one at least, so that every process runs the teacher."""
        return [alignment.teacher_ids or [0] for alignment in self.alignments] or [[0]]

    @property
    def width(self) -> int:
        return max(map(len, self.texts))

    def known(self) -> torch.Tensor:
        """The positions of the teacher's flattened batch that predict the completion, and its end."""
        found = [
            i * self.width + k
            for i, alignment in enumerate(self.alignments)
            for k, offset in enumerate(alignment.offsets)
            if offset >= 0
        ]
        return torch.tensor(found, dtype=torch.long)

    def pieces(self, device: torch.device) -> Pieces:
        """The teacher's batch."""
        rows, width = self.texts, self.width
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        offsets = [(start, i * width) for i, start in enumerate(self.starts)]
        pairs = [
            (of_student + i, of_teacher + k)
            for (of_student, of_teacher), alignment in zip(offsets, self.alignments, strict=True)
            for i, k in zip(alignment.student, alignment.teacher, strict=True)
        ]
        student, teacher = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 2).unbind(1)
        return Pieces({"input_ids": ids, "attention_mask": mask}, student, teacher, offsets)


def stretches_of(found: Aligned, pieces: Pieces, hidden: torch.Tensor, count: int, weight: float) -> Stretches:
    """What lies between aligned positions. A token is predicted at the position before it."""
    number = torch.full((count,), -1, device=hidden.device)
    places: list[int] = []
    tokens: list[int] = []
    numbers: list[int] = []
    total = 0
    for (of_student, of_teacher), alignment in zip(pieces.offsets, found.alignments, strict=True):
        for (start, end), (first, last) in alignment.stretches:
            number[of_student + start - 1 : of_student + end - 1] = total
            places += range(of_teacher + first - 1, of_teacher + last - 1)
            tokens += alignment.teacher_ids[first:last]
            numbers += [total] * (last - first)
            total += 1
    own, ids, index = (torch.tensor(x, dtype=torch.long, device=hidden.device) for x in (places, tokens, numbers))
    return Stretches(weight, number, hidden.index_select(0, own), ids, index, total)


class AligningCollator:
    """
    What another collator makes of some rows, and the rows as the teacher reads them.

    Args:
        collator (`Callable`):
            The other collator. It keeps the order of the rows, and pads on the right or not at all.
        aligner ([`Aligner`]):
            Aligns a row.
    """

    def __init__(self, collator: Collator, aligner: Aligner):
        self.collator, self.aligner = collator, aligner

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        batch = self.collator([{name: row[name] for name in row if name not in _OWN} for row in examples])
        if not any(TEACHER_QUESTION in row for row in examples):
            return batch
        questions = [question_of(row.get(TEACHER_QUESTION)) for row in examples]
        rows, width = batch["input_ids"].shape
        lengths = [len(row["input_ids"]) for row in examples]
        padded = rows == len(examples)
        starts = [i * width if padded else sum(lengths[:i]) for i in range(len(examples))]
        alignments = [self._aligned(row, question) for row, question in zip(examples, questions, strict=True)]
        batch[TEACHER_QUESTION] = Aligned(questions, alignments, starts)
        return batch

    def _aligned(self, row: dict[str, Any], question: Question | None) -> Alignment:
        if question is None:
            return Alignment([], [], [], [], [])
        reading = Reading(row[TEACHER_TOKENS], row[TEACHER_OFFSETS]) if TEACHER_TOKENS in row else None
        return self.aligner(list(row["input_ids"]), question, reading)


def question_of(value: Any) -> Question | None:
    return Question(**value) if isinstance(value, dict) else value
