# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""An exact teacher behind a server that has another tokenizer: it is asked about its own tokens of the same text."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..losses.pooled import METRICS
from ..row_formats import PROMPTS, TEACHER_QUESTION
from ..tiny import resolve
from .aligned import Aligner, Pieces
from .asked import REQUESTS, documents
from .base import Batch
from .client import CompletionsClient
from .other_tokenizer import OtherTokenizer, load_tokenizer
from .states import StatesTeacher


class OtherStatesTeacher(OtherTokenizer, StatesTeacher):
    """
    The last hidden states of a server whose model has another tokenizer, and its head and tokenizer here.

    Args:
        client, encoding, checkpoint, options:
            As of [`StatesTeacher`].

    Raises:
        `ValueError`: As [`StatesTeacher`] does, and if a tokenizer can't be loaded or understood, or the divergence
            means nothing on two vocabularies.
    """

    metrics = METRICS
    columns = [PROMPTS, TEACHER_QUESTION]

    def __init__(self, client: CompletionsClient, encoding: str, checkpoint: str, options: Any):
        super().__init__(client, encoding, checkpoint, options)
        self.check(options)
        self._tokenizer, self.aligner = load_tokenizer(checkpoint, options), Aligner()

    def _fit(self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        stops = stops_at(self.checkpoint, self._origin["revision"])
        self.meet(tokenizer, student, len(self._head.weight), stops, self.positions)
        return self._tokenizer

    def check_rows(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """The student's tokens say nothing of the length of its own rows, which are cut where its positions end."""

    def ask_early(self, texts: list[list[int]]) -> None:
        """They are the student's tokens. Its own are known once the texts are in a batch."""

    def _texts(self, batch: Batch) -> Iterator[tuple[tuple[int, int], list[int]]]:
        found = batch.get(TEACHER_QUESTION)
        return documents(batch if found is None else found.pieces(torch.device("cpu")).inputs)

    def own_states(self, inputs: Batch, pieces: Pieces) -> torch.Tensor:
        own = dict(pieces.inputs)
        if REQUESTS in inputs:
            own[REQUESTS] = inputs.pop(REQUESTS)
        return self._placed(self._taken(own), own["input_ids"])


def stops_at(checkpoint: str, revision: str | None) -> list[int]:
    """The tokens that stop a model's completions, by the configuration beside its checkpoint."""
    try:
        stops = GenerationConfig.from_pretrained(resolve(checkpoint), revision=revision or "main").eos_token_id
    except (OSError, ValueError):
        return []  # it has none; the tokenizer's own end token is among them anyway
    return [] if stops is None else [stops] if isinstance(stops, int) else stops
