# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a teacher has written in its tokens, in those of the student."""

from .alignment import Question, Side, readable


class Translation:
    """
    Completions of the teacher for the student.

    Args:
        student, teacher ([`Side`]):
            Both.
        longest (`int`, *optional*):
            Number of tokens of a prompt that leave the teacher room for a completion: those at the end are kept.
    """

    def __init__(self, student: Side, teacher: Side, longest: int | None):
        self.student, self.teacher = student, teacher
        self._longest = longest

    def prompt(self, question: Question) -> list[int]:
        """What the teacher is to complete."""
        return question.teacher_ids if self._longest is None else question.teacher_ids[-self._longest :]

    def completion(self, ids: list[int], question: Question) -> list[int]:
        """
        The same text in the student's tokens, with its end token if the teacher has ended.

        It goes up to the first token that stands for no text, and the first byte that isn't UTF-8, as at the end of a
        completion that is cut inside a character. What the templates put before an answer is exchanged.
        """
        text = readable(self.teacher.spelling.known(ids))
        if question.chat:
            text = self.student.frame.glue + text.removeprefix(self.teacher.frame.glue)
        own = self.student.spelling.encode(text)
        if own is None:
            return []  # the student's tokenizer can't write it
        end = self.student.frame.end
        return [*own, end] if ids and ids[-1] in self.teacher.frame.ends and end is not None else own
