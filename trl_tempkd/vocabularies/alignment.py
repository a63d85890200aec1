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
    """

    teacher_ids: list[int]
    student: list[int]
    teacher: list[int]
    stretches: list[Stretch]


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
    Align a row of the student with the teacher's row for the same completion.

    The student's completion ends for this purpose with its first token that stands for no text, be it its end or an
    unknown one, and with the first byte that isn't UTF-8: what comes after it the teacher can't read, and a completion
    that is cut in the middle of a character has such a byte at its end.

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
    start = question.start
    if not start:  # text without a prompt may begin with a special token
        start = next((i for i, token in enumerate(ids) if student.spelling.known([token])), len(ids))
    own = boundaries(student.spelling, ids[start:])
    data = student.spelling.known(ids[start:])
    skip, glue = question.skip, teacher.frame.glue if question.chat else ""
    if question.chat and data[skip:].startswith(student.frame.glue.encode()):
        skip += len(student.frame.glue.encode())
    text = readable(data[skip:])
    answer = teacher.spelling.encode(glue + text) or []
    others = boundaries(teacher.spelling, answer)
    # A boundary behind byte `n` of the answer is that before the student's token `at[n]`, and the teacher's
    last = len(text.encode())
    at = {offset - skip: start + i for i, offset in enumerate(own)}
    of_teacher = {offset - len(glue.encode()): len(question.teacher_ids) + k for k, offset in enumerate(others)}
    teacher_ids = (question.teacher_ids + answer)[:longest]
    shared = sorted(n for n in at.keys() & of_teacher.keys() if 0 <= n <= last and of_teacher[n] <= len(teacher_ids))
    pairs = [(at[n] - 1, of_teacher[n] - 1) for n in shared if at[n] > 0 and of_teacher[n] > 0]
    stretches = [
        Stretch((at[a], at[b]), (of_teacher[a], of_teacher[b]))
        for a, b in pairwise(shared)
        if at[a] > 0 and of_teacher[a] > 0 and (at[b] - at[a], of_teacher[b] - of_teacher[a]) != (1, 1)
    ]
    # The boundary at the end of a row has no next token: its position predicts nothing that is there
    pairs = [pair for pair in pairs if pair[0] + 1 < len(ids)]
    return Alignment(teacher_ids, [i for i, _ in pairs], [k for _, k in pairs], stretches)


def readable(data: bytes) -> str:
    """The text of some bytes up to the first that isn't UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()
