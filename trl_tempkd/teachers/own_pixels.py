# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
A teacher that sees the images of rows through its own processor: other pixels, other tokens for them, perhaps another
chat template. Where each says the same tokens is known as for a teacher with a prompt of its own: by their labels.
"""

from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..compat import get_config_model_id
from ..errors import UsageError
from ..models import load_processor
from ..vision import Processing, VisionCollator
from .own_prompt import OWN, OwnBatch, targets_of


class OwnPixelsCollator:
    """
    What the student reads of some rows, and the batch that the teacher reads in its place, if that is another one.

    Args:
        collator ([`VisionCollator`]):
            The student's.
        processing ([`Processing`]):
            The teacher's processor, or the student's.
    """

    def __init__(self, collator: VisionCollator, processing: Processing):
        self.collator, self.processing = collator, processing

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = self.collator.given(examples)
        student = self.collator.student(rows)
        batch = self.collator.finished(rows, student)
        others = any(row.pictured is not None and row.pictured.teacher is not None for row in rows)
        if self.processing is self.collator.processing and not others:
            return batch
        own = self.collator.padded(self.collator.teacher(rows, student, self.processing), self.processing)
        mine, theirs = targets_of(batch["labels"]), targets_of(own.pop("labels"))
        source = torch.zeros(batch["labels"].numel(), dtype=torch.long).index_copy_(0, mine, theirs)
        batch[OWN] = OwnBatch(own, source)
        return batch


def own_processing(
    teacher: str | PreTrainedModel, student: Processing, *, revision: str | None, trust_remote_code: bool
) -> Processing:
    """
    The teacher's processor, or the student's if the two make the same of a row.

    Args:
        teacher (`str` or [`~transformers.PreTrainedModel`]):
            Name or path of the teacher, or the model.
        student ([`Processing`]):
            The student's.
        revision (`str`, *optional*):
            Revision of the teacher.
        trust_remote_code (`bool`):
            Whether to run code that comes with the processor.

    Raises:
        [`UsageError`]: If it can't be loaded, or the teacher reads no images.
    """
    name = teacher if isinstance(teacher, str) else get_config_model_id(teacher.config)
    try:
        processor = load_processor(name, revision, trust_remote_code, "teacher") if name else None
    except UsageError:
        if isinstance(teacher, str):
            raise
        processor = None
    if processor is None and not isinstance(teacher, str):
        return student  # of a model that comes from nowhere
    if not isinstance(processor, ProcessorMixin):
        raise UsageError(
            f"The teacher {name!r} (`teacher_model`) reads text alone, and the rows have images. Use a teacher that "
            "sees, or leave out the columns `images` and `image`."
        )
    own = Processing(processor)
    return student if own.settings() == student.settings() else own
