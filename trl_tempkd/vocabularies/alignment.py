# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The same completion as tokens of two vocabularies, and where both have a token boundary.

At such a place both models have read the same bytes, so that what they say of the next ones can be compared.
"""

from itertools import pairwise
from typing import NamedTuple

from .answers import AnswerFrame
from .spelling import Spelling


class Side(NamedTuple):
    """One of the two: how its tokens are spelt, and what it puts around an answer."""

    spelling: Spelling
    frame: AnswerFrame


class Question(NamedTuple):
    """
    What a row asks, for both.

    Attributes:
        teacher_ids (`list[int]`):
            The prompt in the teacher's tokens.
        start (`int`):
            Number of the student's token with which its completion begins.
        skip (`int`):
            Number of bytes in it that still belong to the prompt, where tokens have merged across its end.
        chat (`bool`):
            Whether a chat template has written the prompt.
    """

    teacher_ids: list[int]
    start: int
    skip: int
    chat: bool


class Reading(NamedTuple):
    """
    A row as the teacher reads it.

    Attributes:
        ids (`list[int]`):
            The prompt, and the completion in the teacher's tokens.
        offsets (`list[int]`):
            Behind each of these tokens the number of bytes of the completion that have been read; negative in the
            prompt, and behind what stands for no text.
    """

    ids: list[int]
    offsets: list[int]


class Stretch(NamedTuple):
    """Tokens between two boundaries that both have, `[start, end)` of each row, of which one has several."""

    student: tuple[int, int]
    teacher: tuple[int, int]


class Alignment(NamedTuple):
    """
    A row and the teacher's row for it.

    Attributes:
        teacher_ids (`list[int]`):
            The teacher's row: its prompt, and the completion in its tokens.
        student, teacher (`list[int]`):
            Positions of both rows that have read the same bytes, in pairs: the next token begins behind them.
        stretches (`list[Stretch]`):
            What lies between two of them, where it isn't one token on both sides.
        offsets (`list[int]`):
            Of the teacher's row, as [`Reading`] has them.
    """

    teacher_ids: list[int]
    student: list[int]
    teacher: list[int]
    stretches: list[Stretch]
    offsets: list[int]


def boundaries(spelling: Spelling, ids: list[int]) -> list[int]:
    """Where in bytes each token begins, and where the last one ends, up to the first that stands for no text."""
    found = [0]
    for i in ids:
        part = spelling.tokens[i] if i < len(spelling.tokens) else None
        if part is None:
            break
        found.append(found[-1] + len(part))
    return found


def align(ids: list[int], question: Question, student: Side, teacher: Side, longest: int | None = None) -> Alignment:
    """
    Align a row of the student with the teacher's row for the same completion: [`match`] of what it [`read`]s.

    Args:
        ids (`list[int]`):
            The student's row, without padding.
        question ([`Question`]):
            What it asks.
        student, teacher ([`Side`]):
            Both.
        longest (`int`, *optional*):
            Number of positions that the teacher has; what is beyond isn't compared.
    """
    return match(ids, question, student, read(ids, question, student, teacher, longest))


def read(ids: list[int], question: Question, student: Side, teacher: Side, longest: int | None = None) -> Reading:
    """
    The completion of a row in the teacher's tokens, behind its own prompt. Arguments as of [`align`].

    The student's completion ends for this purpose with its first token that stands for no text, be it its end or an
    unknown one, with the first byte that isn't UTF-8, and with the first that the teacher's tokenizer changes: what
    comes after it the teacher can't read, and a completion that is cut in the middle of a character has such a byte at
    its end.
    """
    start, skip = _beginning(ids, question, student)
    glue = teacher.frame.glue if question.chat else ""
    answer = teacher.spelling.encode_beginning(glue + readable(student.spelling.known(ids[start:])[skip:]))
    asked, offsets = question.teacher_ids, [n - len(glue.encode()) for n in boundaries(teacher.spelling, answer)]
    if asked:
        offsets = [*[-1] * (len(asked) - 1), *offsets]
    else:
        offsets = offsets[1:]  # nothing predicts a first token
    reading = asked + answer
    offsets += [-1] * (len(reading) - len(offsets))
    return Reading(reading[:longest], offsets[:longest])


def match(ids: list[int], question: Question, student: Side, reading: Reading) -> Alignment:
    """
    Where a row of the student and what the teacher reads of it have read the same bytes.

    Args:
        ids, question, student:
            As of [`align`].
        reading ([`Reading`]):
            What the teacher reads.
    """
    start, skip = _beginning(ids, question, student)
    # A boundary behind byte `n` of the completion is that before the student's token `at[n]`, and the teacher's
    at = {n - skip: start + i for i, n in enumerate(boundaries(student.spelling, ids[start:])) if start + i}
    of_teacher = {n: k + 1 for k, n in enumerate(reading.offsets) if n >= 0}
    shared = sorted(at.keys() & of_teacher.keys())
    pairs = [(at[n] - 1, of_teacher[n] - 1) for n in shared]
    stretches = [
        Stretch((at[a], at[b]), (of_teacher[a], of_teacher[b]))
        for a, b in pairwise(shared)
        if (at[b] - at[a], of_teacher[b] - of_teacher[a]) != (1, 1)
    ]
    # The boundary at the end of a row has no next token: its position predicts nothing that is there
    pairs = [pair for pair in pairs if pair[0] + 1 < len(ids)]
    return Alignment(reading.ids, [i for i, _ in pairs], [k for _, k in pairs], stretches, reading.offsets)


def _beginning(ids: list[int], question: Question, student: Side) -> tuple[int, int]:
    """With which of the student's tokens the completion begins, and how many of its bytes aren't part of it."""
    start, skip = question.start, question.skip
    if not start:  # text without a prompt may begin with a special token
        start = next((i for i, token in enumerate(ids) if student.spelling.known([token])), len(ids))
    glue = student.frame.glue.encode() if question.chat else b""
    if glue and student.spelling.known(ids[start:])[skip:].startswith(glue):
        skip += len(glue)
    return start, skip


def readable(data: bytes) -> str:
    """The text of some bytes up to the first that isn't UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()
