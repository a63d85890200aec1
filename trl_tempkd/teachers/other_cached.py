# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher with another tokenizer that has run before: its tokens, offsets and last hidden states are in a cache."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import Head
from ..losses.pooled import METRICS
from ..row_formats import TEACHER_QUESTION
from .aligned import Aligner, AligningCollator, Pieces
from .base import Batch, Collator
from .cached import POSITIONS, REPAIR, TOKENIZER, CachedCollator, CachedTeacher
from .manifest import AGAIN, compare, whole_hashes_of
from .other_tokenizer import OtherTokenizer, load_tokenizer


class OtherCachedTeacher(OtherTokenizer, CachedTeacher):
    """
    A cache of a teacher with another tokenizer, which is in its folder: the teacher itself need not be there.

    Args:
        teacher (`str`, *optional*):
            Name of the teacher of the run, to be compared with that of the cache.
        options (`KDConfig`):
            Configuration of the run. `teacher_cache` is the folder.

    Raises:
        `ValueError`: As [`CachedTeacher`] does, and if the tokenizer is damaged or another one.
    """

    def __init__(self, teacher: str | None, options: Any):
        super().__init__(teacher, options)
        self.metrics, self.aligner = METRICS, Aligner()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(self.folder / TOKENIZER))
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{self.folder / TOKENIZER} can't be read: {error}. {REPAIR}") from error
        self._compare(self._tokenizer, f"The cache in {self.folder} was built with", f"its {TOKENIZER} has", REPAIR)
        if teacher is not None:
            try:
                own = load_tokenizer(teacher, options)
            except UsageError:  # it is out of reach, which is what a cache is good for; its name has been compared
                return
            self._compare(own, f"The cache in {self.folder} was built with", f"the run's teacher {teacher} has", AGAIN)

    def _compare(self, tokenizer: PreTrainedTokenizerBase, *said: str) -> None:
        start, then, way_out = said
        for name, value in whole_hashes_of(tokenizer).items():
            compare(
                (self.manifest.other_tokenizer or {}).get(name), value, f"other_tokenizer.{name}", start, then, way_out
            )

    def bind(
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        super().bind(student, tokenizer, accelerator)
        ends = (self.manifest.other_tokenizer or {})["ends"]
        assert isinstance(self._head, Head)
        self.meet(tokenizer, accelerator.unwrap_model(student()), len(self._head.weight), ends, None)

    def collate(self, collator: Collator) -> CachedCollator:
        splits = () if self.alone else self._splits
        return OtherCachedCollator(AligningCollator(collator, self.aligner), self.manifest, str(self.folder), splits)

    def own_states(self, inputs: Batch, pieces: Pieces) -> torch.Tensor:
        stored, positions = inputs.pop(self.layout.column), inputs.pop(POSITIONS)
        hidden = self.layout.decode(stored, positions, pieces.inputs["input_ids"].numel())
        assert isinstance(hidden, torch.Tensor)
        return hidden


class OtherCachedCollator(CachedCollator):
    """As [`CachedCollator`]: positions are those of the teacher's own batch."""

    def positions(self, batch: Batch) -> torch.Tensor:
        return batch[TEACHER_QUESTION].known()


def cached_teacher(teacher: str | None, options: Any) -> CachedTeacher:
    """The cache of a run."""
    return (CachedTeacher if options.vocabulary_alignment is None else OtherCachedTeacher)(teacher, options)
