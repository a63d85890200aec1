# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where the target distribution comes from."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import Head, NoHead
from ..losses import Logits, Truncated
from ..packing import PackingCheck, PackingOptions
from .address import shown
from .asked import AskedTeacher
from .base import STUDENT_BASE, BaseTeacher
from .build import CacheBuilder
from .cached import CachedTeacher, TeacherCache
from .client import TeacherServerError
from .kinds import served_teacher
from .live import LiveTeacher, check_separate, check_vocabulary, load_teacher, refuse_options
from .served import ServedTeacher, ServerOptions
from .states import StatesTeacher


__all__ = [
    "STUDENT_BASE",
    "AskedTeacher",
    "BaseTeacher",
    "CacheBuilder",
    "CachedTeacher",
    "LiveTeacher",
    "ServedTeacher",
    "StatesTeacher",
    "Teacher",
    "TeacherCache",
    "TeacherServerError",
    "check_separate",
    "check_vocabulary",
    "load_teacher",
    "make_teacher",
    "open_cache",
]


class Teacher(Protocol):
    """
    What the trainer asks of a teacher: its last hidden state and its head. Together they are its exact distribution at
    every temperature, and far smaller than its logits. A cache or a server may have less.

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

    def rows(self, inputs: dict[str, Any]) -> torch.Tensor | Logits | Truncated:
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

    def head(self) -> AbstractContextManager[Head | NoHead]:
        """Context in which the teacher's head is whole, on every rank. What `rows` needs are its `arguments`."""
        ...


class TeacherOptions(ServerOptions, PackingOptions, Protocol):
    """What [`open_cache`] and [`make_teacher`] read of a configuration."""

    teacher_cache: str | None
    trust_remote_code: bool


def open_cache(teacher: str | PreTrainedModel | None, options: TeacherOptions) -> TeacherCache | None:
    """
    The cache, where it is the teacher of a run.

    Raises:
        `ValueError`: If there is no teacher at all, more than one, or the cache can't be trained from.
    """
    if options.teacher_cache is not None:
        return TeacherCache(options.teacher_cache, options, teacher)
    if teacher is None and options.teacher_server_url is None:
        raise UsageError(
            "A teacher is required: pass `teacher_model`, or set `teacher_model_name_or_path`, `teacher_cache` or "
            "`teacher_server_url`."
        )
    if options.teacher_server_url is not None and not isinstance(teacher, str | None):
        raise UsageError(
            f"`teacher_server_url` is {shown(options.teacher_server_url)}, and `teacher_model` a "
            f"{type(teacher).__name__}: pass one of the two, or the name by which the server knows the teacher."
        )
    return None


def make_teacher(
    teacher: str | PreTrainedModel | TeacherCache | None,
    student: Callable[[], nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    options: TeacherOptions,
) -> Teacher:
    """
    Make the teacher of a student: load it, check that it fits, prepare it for the accelerator.

    Args:
        teacher (`str` or [`~transformers.PreTrainedModel`] or [`TeacherCache`], *optional*):
            Name or path, the model itself, `"student_base"` (the student without its PEFT adapter), or its cache. With
            `teacher_server_url` the name of the checkpoint or on the server, or `None`.
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
    if options.teacher_server_url is not None:
        return served_teacher(teacher, accelerator.unwrap_model(student()), tokenizer, accelerator, options)
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
    return LiveTeacher(model, accelerator, PackingCheck("teacher", options))
