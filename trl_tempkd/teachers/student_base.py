# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The student's own base as its teacher: one model in memory, which runs with the adapter switched off."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..compat import ForwardRedirection
from ..errors import UsageError
from ..heads import Head, gathered_head, last_hidden_state, unwrap_adapter
from .base import Batch, Teacher
from .live import refuse_options
from .several_options import STUDENT_BASE


# Initialisations of LoRA that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, ...) take what
# the adapter starts with out of its weights, so that without the adapter it isn't the model that was loaded.
_INITS_THAT_KEEP_THE_BASE = ("gaussian", "eva", "mica", "orthogonal")


class StudentBaseTeacher(Teacher):
    """
    The student without its adapter: in evaluation mode, without gradients, through the student's own wrapper. What is
    checked of the student's architecture is checked of it.

    Args:
        teacher (`str`):
            `"student_base"`.
        options (`KDConfig`):
            Configuration of the run.

    Raises:
        `ValueError`: If an option says how to load it; by `bind`, if the student is no PEFT model, or its base is not
            what it was before the adapter.
    """

    can_generate = True

    def __init__(self, teacher: str, options: Any):
        refuse_options(
            f"{teacher!r}, which is in memory", options.teacher_model_init_kwargs, options.teacher_model_revision
        )

    def bind(
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        self._wrapped, self._accelerator = student, accelerator
        self._forward_redirection = ForwardRedirection()
        check_base(self._student())

    def _student(self) -> PeftModel:
        return self._accelerator.unwrap_model(self._wrapped())

    def wrapped(self) -> nn.Module:
        return self._wrapped()

    def active(self) -> AbstractContextManager[None]:
        return _without_adapter(self._student())

    def reader(self) -> nn.Module:
        return unwrap_adapter(self._student())

    @torch.no_grad()
    def rows(self, inputs: Batch) -> torch.Tensor:
        model = self._student()
        with self.active():
            hidden = self._forward_redirection(self.wrapped(), model, partial(last_hidden_state, model, inputs))
        return hidden.flatten(0, 1)

    def head(self) -> AbstractContextManager[Head]:
        return gathered_head(self._student(), adapter=False)

    def identity(self) -> dict[str, Any]:  # it is the base of the student, which is described
        return {"kind": STUDENT_BASE, "name": None, "identity": None}


@contextmanager
def _without_adapter(model: PeftModel) -> Iterator[None]:
    """Switch the adapter off, and dropout and activation checkpointing with it; everything is put back on leaving."""
    training = model.training
    trainable = _trainable(model)
    model.eval()
    try:
        with model.disable_adapter():
            _set_trainable(model, trainable)
            yield
    finally:
        _set_trainable(model, trainable)
        model.train(training)


def _trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _set_trainable(model: nn.Module, names: set[str]) -> None:
    # PEFT freezes an adapter that it disables and thaws one that it enables, whatever it was before. Under FSDP2 a
    # parameter could stay as its gathering found it: frozen.
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (name in names):
            parameter.requires_grad_(name in names)


def check_base(student: nn.Module) -> None:
    """
    Refuse a student whose base, with the adapter switched off, isn't the model that it was before.

    Args:
        student (`torch.nn.Module`):
            Student, not wrapped for distributed training.

    Raises:
        `ValueError`: If it is no PEFT model, or if its base has changed or would change in training.
    """
    if not isinstance(student, PeftModel):
        raise UsageError(
            f"The teacher (`teacher_model` or `teacher_model_name_or_path`) is {STUDENT_BASE!r}, the student without "
            f"its adapter, but the student is a {type(student).__name__} and has none. Give it one by `peft_config` "
            "(`--use_peft` on the command line), or name another teacher."
        )
    for config in student.peft_config.values():
        init = getattr(config, "init_lora_weights", True)
        if isinstance(init, str) and init not in _INITS_THAT_KEEP_THE_BASE:
            raise UsageError(
                f"The teacher can't be {STUDENT_BASE!r} with `init_lora_weights={init!r}`, which changes the base. "
                "Use the default, or load the teacher by its own name."
            )
    trainable = _trainable(student)
    with warnings.catch_warnings(action="ignore"), student.disable_adapter():  # it warns of biases, refused below
        trained = _trainable(student)
    _set_trainable(student, trainable)
    if trained:
        raise UsageError(
            f"The teacher can't be {STUDENT_BASE!r}, since the base is trained too: {len(trained)} of its parameters, "
            f"the first being {sorted(trained)[0]}. Freeze them (`bias='none'` for LoRA), or load the teacher by its "
            "own name."
        )
