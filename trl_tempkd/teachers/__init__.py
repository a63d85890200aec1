# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where the target distribution comes from."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from ..errors import UsageError
from .address import shown
from .base import Teacher
from .build import CacheBuilder
from .cached import CachedTeacher
from .client import TeacherServerError
from .kinds import served_teacher
from .live import LiveTeacher, check_separate, check_vocabulary, load_teacher
from .other_cached import OtherCachedTeacher, cached_teacher
from .other_tokenizer import OtherTokenizerTeacher
from .served import ServedTeacher
from .several import SeveralTeachers
from .several_options import STUDENT, STUDENT_BASE, STUDENT_EMA
from .states import StatesTeacher
from .student import StudentEMATeacher, StudentTeacher
from .student_base import StudentBaseTeacher


__all__ = [
    "SOURCES",
    "STUDENT",
    "STUDENTS",
    "STUDENT_BASE",
    "STUDENT_EMA",
    "CacheBuilder",
    "CachedTeacher",
    "LiveTeacher",
    "OtherCachedTeacher",
    "OtherTokenizerTeacher",
    "ServedTeacher",
    "SeveralTeachers",
    "StatesTeacher",
    "StudentBaseTeacher",
    "StudentEMATeacher",
    "StudentTeacher",
    "Teacher",
    "TeacherServerError",
    "check_separate",
    "check_vocabulary",
    "load_teacher",
    "make_teacher",
]

# The option that asks for a source in place of a model
SOURCES: dict[str, Callable[[str | None, Any], Teacher]] = {
    "teacher_cache": cached_teacher,
    "teacher_server_url": served_teacher,
}

# Teachers that are in memory with the student, by the name that asks for them
STUDENTS: dict[str, Callable[[str, Any], Teacher]] = {
    STUDENT_BASE: StudentBaseTeacher,
    STUDENT: StudentTeacher,
    STUDENT_EMA: StudentEMATeacher,
}


def make_teacher(teacher: str | PreTrainedModel | None, options: Any) -> Teacher:
    """
    Make the teacher of a run, before the student is there. [`Teacher.bind`] gets it ready for one.

    Args:
        teacher (`str` or [`~transformers.PreTrainedModel`], *optional*):
            Name or path, the model itself, or one of `STUDENTS`, such as `"student_base"` (the student without its
            PEFT adapter). With a source that has an option of its own the name by which it knows the teacher, or
            `None`.
        options (`KDConfig`):
            Configuration of the run.

    Returns:
        [`Teacher`]: The teacher. It has loaded no model.

    Raises:
        `ValueError`: If there is no teacher at all, more than one, or one that can't serve the run.
    """
    if options.teachers is not None:
        return SeveralTeachers(teacher, options, make_teacher)
    for option, source in SOURCES.items():
        value = getattr(options, option)
        if value is None:
            continue
        if not isinstance(teacher, str | None):
            raise UsageError(
                f"`{option}` is {shown(value)!r}, and `teacher_model` a {type(teacher).__name__}: pass one of the "
                "two, or the name of the teacher that is meant."
            )
        return source(teacher, options)
    if teacher is None:
        raise UsageError(
            "A teacher is required: pass `teacher_model`, or set `teacher_model_name_or_path`, "
            f"{' or '.join(f'`{option}`' for option in SOURCES)}."
        )
    if isinstance(teacher, str) and teacher in STUDENTS:
        if options.vocabulary_alignment is not None:
            raise UsageError(
                f"`vocabulary_alignment` is {options.vocabulary_alignment!r}, and the teacher {teacher!r} has the "
                "student's tokenizer. Leave it unset."
            )
        return STUDENTS[teacher](teacher, options)
    if options.vocabulary_alignment is not None:
        return OtherTokenizerTeacher(teacher, options)
    return LiveTeacher(teacher, options)
