# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The rows of a teacher cache: which columns they have, how a row is recognised, and how damage is."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from datasets import Dataset, Features, List, Value

from ..row_formats import CONTEXTS, PIXELS, TEACHER_OFFSETS, TEACHER_QUESTION, TEACHER_TOKENS
from ..vocabularies.alignment import Question
from .layouts import Layout


# Beside it stands the column of the layout. It is as long as `input_ids`: bytes where the teacher predicts a token
# with a label, and none elsewhere. So a token keeps what belongs to it, however rows are selected, sliced or packed.
# With another tokenizer it is as long as the teacher's row, and has bytes where the teacher predicts the completion.
CHECKSUM = "teacher_checksum"  # of the row's tokens and of these bytes
_READ = (TEACHER_TOKENS, TEACHER_OFFSETS)
# What TRL's collator reads, and what the teacher is asked, sees and has read
TOKENS = ("input_ids", "labels", "seq_lengths", CONTEXTS, TEACHER_QUESTION, PIXELS, *_READ)


class Tokens(NamedTuple):
    """The token columns of a row."""

    input_ids: np.ndarray
    labels: np.ndarray
    seq_lengths: np.ndarray | None = None
    teacher_contexts: np.ndarray | None = None
    teacher_question: np.ndarray | None = None
    image_hash: np.ndarray | None = None
    teacher_tokens: np.ndarray | None = None
    teacher_offsets: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self if column is not None)

    @property
    def stored(self) -> np.ndarray:
        """Where something is stored of the teacher: `(L,)`, or `(L_t,)` of the row of another tokenizer."""
        return predicting(self) if self.teacher_offsets is None else self.teacher_offsets >= 0


def features_of(dataset: Dataset, layout: Layout) -> Features:
    """The features of a cache of that data set."""
    tokens = {name: dataset.features[name] for name in token_columns(dataset)}
    return Features({**tokens, layout.column: List(Value("large_binary")), CHECKSUM: Value("uint64")})


def token_columns(dataset: Dataset) -> list[str]:
    return [name for name in TOKENS if name in dataset.column_names]


def tokens_of(row: dict[str, Any]) -> Tokens:
    """The token columns of a row."""
    return Tokens(**{name: _numbers(row[name]) for name in TOKENS if name in row})


def _numbers(value: Any) -> Any:
    """A column of a row as numbers; of a question its start, skip, chat, and the tokens. A row may have none."""
    if value is None:
        return None
    if isinstance(value, dict):
        value = Question(**value)
    if isinstance(value, Question):
        value = [value.start, value.skip, value.chat, *value.teacher_ids]
    return np.asarray(value, dtype=np.int64)


def rows_of(dataset: Dataset) -> Iterator[Tokens]:
    """The token columns of every row, as `tokens_of` gives them, without making Python numbers of them."""
    names = token_columns(dataset)
    for table in dataset.select_columns(names).with_format("arrow").iter(1000):
        for row in zip(*(_split(table[name]) for name in names), strict=True):
            yield Tokens(**dict(zip(names, row, strict=True)))


def _split(column: pa.ChunkedArray) -> list[np.ndarray]:
    if pa.types.is_struct(column.type):
        return [_numbers(value) for value in column.to_pylist()]
    lists = column.combine_chunks()
    ends = np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    return np.split(lists.flatten().cast(pa.int64()).to_numpy(zero_copy_only=False), ends[:-1])


def key_of(tokens: Tokens) -> bytes:
    """
    What a row is recognised by: its tokens, which of them have a label, where its documents begin, and if there is
    such, what the teacher reads before them in place of the student's prompt, what a teacher with another tokenizer is
    asked, and the images.
    """
    input_ids, labels, lengths, contexts, question, pixels, *_ = tokens
    digest = xxhash.xxh3_128(input_ids.tobytes())
    digest.update(labels.tobytes())
    if lengths is not None and len(lengths) > 1:
        digest.update(lengths.tobytes())
    if contexts is not None:
        digest.update(b"teacher")
        digest.update(contexts.tobytes())
    if question is not None:
        digest.update(b"question")
        digest.update(question.tobytes())
    if pixels is not None:
        digest.update(b"pixels")
        digest.update(pixels.tobytes())
    return digest.digest()


def uniform_of(rows: Iterable[Tokens], size: int) -> torch.Tensor:
    """
    Random numbers in [0, 1) for the positions of some rows that predict something, of shape `(K, size)`, in fp64.

    A row's are its own, whatever batch it is in, so that a cache is the same however it is built.
    """
    parts = [np.zeros((0, size))]
    for tokens in rows:
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key_of(tokens))))
        parts.append(generator.random((int(predicting(tokens).sum()), size)))
    return torch.from_numpy(np.concatenate(parts))


def predicting(tokens: Tokens) -> np.ndarray:
    """Which positions of a row predict a token with a label, of shape `(L,)`: those that the loss sees."""
    labels, lengths = tokens.labels, tokens.seq_lengths
    kept = np.zeros(len(labels), dtype=bool)
    kept[:-1] = labels[1:] != -100
    if lengths is not None:  # nothing predicts the first token of a document
        kept[np.cumsum(lengths) - 1] = False
    return kept


def checksum(tokens: Tokens, parts: Iterable[bytes], seed: int) -> int:
    digest = xxhash.xxh3_64(key_of(tokens), seed)
    for column in (tokens.teacher_tokens, tokens.teacher_offsets):
        if column is not None:
            digest.update(column.tobytes())
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def encode(tokens: Tokens, bytes_KS: torch.Tensor, layout: Layout, seed: int) -> dict[str, Any]:
    """
    The cached columns of a row.

    Args:
        tokens ([`Tokens`]):
            The row's token columns.
        bytes_KS (`torch.Tensor` of shape `(K, S)`):
            What the layout has made of the `K` positions where something is stored.
        layout ([`Layout`]):
            The layout.
        seed (`int`):
            Of the checksum.
    """
    data, size = bytes_KS.numpy().tobytes(), layout.size
    parts = iter([data[start : start + size] for start in range(0, len(data), size)])
    column = [next(parts) if kept else b"" for kept in tokens.stored]
    return {layout.column: column, CHECKSUM: checksum(tokens, column, seed)}


def is_sound(row: dict[str, Any], layout: Layout, seed: int) -> bool:
    """Whether a row has the layout's bytes wherever it should have them, and is what was written."""
    tokens, column = tokens_of(row), row[layout.column]
    fits = [len(part) for part in column] == [layout.size if kept else 0 for kept in tokens.stored.tolist()]
    return fits and checksum(tokens, column, seed) == row[CHECKSUM]
