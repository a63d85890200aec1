# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where the target distribution comes from."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..heads import Head
from ..losses import Truncated
from .base import STUDENT_BASE, BaseTeacher
from .build import CacheBuilder
from .cached import CachedTeacher, TeacherCache
from .live import LiveTeacher, check_separate, check_vocabulary, load_teacher, refuse_options


__all__ = [
    "STUDENT_BASE",
    "BaseTeacher",
    "CacheBuilder",
    "CachedTeacher",
    "LiveTeacher",
    "Teacher",
    "TeacherCache",
    "check_separate",
    "check_vocabulary",
    "load_teacher",
    "make_teacher",
]


class Teacher(Protocol):
    """
    What the trainer asks of a teacher: its last hidden state and its head. Together they are its exact distribution at
    every temperature, and far smaller than its logits. A cache may have less.

    Attributes:
        model (`torch.nn.Module` or `None`):
            The teacher's own model as it is wrapped, if it has one.
        metrics (`tuple[str, ...]`):
            Names of the metrics that the loss can give of it.
    """

    model: Any
    metrics: tuple[str, ...]

    def wrapped(self) -> nn.Module:
        """The module that is the teacher inside of `active()`, as it is wrapped at the moment; to generate with it."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """Context in which `wrapped()` is the teacher. The other methods enter it themselves."""
        ...

    def rows(self, inputs: dict[str, Any]) -> torch.Tensor | Truncated:
        """
        What the loss takes in the place of `teacher_hidden`, for a batch as the data collator made it: the last hidden
        states `(B * L, H_t)`, or what is known of the teacher. Takes out of the batch what it has for the teacher
        alone.
        """
        ...

    def hidden_states(self, inputs: dict[str, Any]) -> torch.Tensor:
        """
        Last hidden state for a batch as the data collator made it, of shape `(B, L, H_t)`, without gradient. What the
        batch has for the teacher alone is taken out of it.
        """
        ...

    def head(self) -> AbstractContextManager[Head]:
        """Context in which the teacher's head is whole, on every rank. What `rows` needs are its `arguments`."""
        ...


class TeacherOptions(Protocol):
    """What [`make_teacher`] reads of a configuration."""

    teacher_model_init_kwargs: Any
    teacher_model_revision: str | None
    trust_remote_code: bool


def make_teacher(
    teacher: str | PreTrainedModel | TeacherCache,
    student: Callable[[], nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    options: TeacherOptions,
) -> Teacher:
    """
    Make the teacher of a student: load it, check that it fits, prepare it for the accelerator.

    Args:
        teacher (`str` or [`~transformers.PreTrainedModel`] or [`TeacherCache`]):
            Name or path, the model itself, `"student_base"` (the student without its PEFT adapter), or its cache.
        student (`Callable[[], torch.nn.Module]`):
            Gives the student as it is wrapped at the moment.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student and of the data.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
        options ([`TeacherOptions`]):
            How to load the teacher.

    Returns:
        [`Teacher`]: The teacher, ready to be asked.

    Raises:
        `ValueError`: If the teacher shares parameters with the student or has another tokenizer, if the student has no
            adapter to switch off or its base is trained too, or if an option says how to load what isn't loaded.
    """
    if isinstance(teacher, TeacherCache):
        teacher.check_student(accelerator.unwrap_model(student()))
        return CachedTeacher(teacher, accelerator)
    origin: dict[str, Any] = {
        "revision": options.teacher_model_revision,
        "trust_remote_code": options.trust_remote_code,
    }
    if isinstance(teacher, str) and teacher == STUDENT_BASE:
        refuse_options(f"{STUDENT_BASE!r}, which is in memory", options.teacher_model_init_kwargs, origin["revision"])
        return BaseTeacher(student, accelerator)
    model = load_teacher(teacher, options.teacher_model_init_kwargs, **origin)
    unwrapped = accelerator.unwrap_model(student())
    check_separate(unwrapped, model)
    check_vocabulary(tokenizer, unwrapped, model, **origin)
    return LiveTeacher(model, accelerator)
