# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Batches as the data collator makes them <-> the rows that they hold, and what is the prompt in a row."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from ..errors import UsageError


IGNORED = -100  # the label of a token that isn't trained on
ROW_TENSORS = ("input_ids", "trained", "lengths")


class Row(NamedTuple):
    """
    One sequence, without padding.

    Attributes:
        input_ids (`list[int]` of length `L`):
            Its tokens.
        labels (`list[int]` of length `L`):
            The same tokens, or -100 where they aren't trained on.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def prompt(self) -> list[int]:
        """What stands before the last run of labels: the context of the last turn. Empty if there is none."""
        trained = [label != IGNORED for label in self.labels]
        if True not in trained:
            return []
        end = len(trained) - trained[::-1].index(True)
        before = [i for i in range(end) if not trained[i]]
        return self.input_ids[: before[-1] + 1] if before else []

    @property
    def targets(self) -> int:
        """Number of tokens that the loss sees: all with a label but the first, which nothing predicts."""
        return sum(label != IGNORED for label in self.labels[1:])


def completed(prompt: list[int], completion: list[int]) -> Row:
    """The row of which `completion` alone is trained on."""
    return Row(prompt + completion, [IGNORED] * len(prompt) + completion)


def rows_of(batch: dict[str, Any]) -> list[Row]:
    """
    The sequences of a batch, in its order, without their padding.

    Padding is what the attention mask leaves out. In a padding-free batch, which has none, a sequence starts where the
    positions start anew, and one without a label is padding, or has nothing to be learnt from.

    Raises:
        `ValueError`: If the batch has neither `attention_mask` nor `position_ids`.
    """
    if "attention_mask" in batch:
        return list(_padded_rows(batch))
    if "position_ids" in batch:
        return list(_padding_free_rows(batch))
    raise UsageError(
        "With `lmbda` or `seq_kd` the data collator must give `attention_mask`, or `position_ids` without padding, "
        f"beside `input_ids` and `labels`, got {', '.join(batch)}."
    )


def _padded_rows(batch: dict[str, Any]) -> Iterator[Row]:
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
        yield Row(ids[mask].tolist(), labels[mask].tolist())


def _padding_free_rows(batch: dict[str, Any]) -> Iterator[Row]:
    for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
        starts = (positions == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            row = Row(ids[start:end].tolist(), labels[start:end].tolist())
            # The collator drops the first label, which nothing predicts. It tells text without a prompt from one with.
            if row.labels[1:2] not in ([], [IGNORED]):
                row.labels[0] = row.input_ids[0]
            if row.targets:
                yield row


def split_evenly(rows: list[Row], parts: int) -> list[list[Row]]:
    """
    The rows in `parts` groups of nearly equal count, the longest together, so that little is lost to padding.

    No group is empty: where there are too few rows, some are put in that aren't trained on.
    """
    rows = sorted(rows, key=lambda row: -len(row.input_ids))
    missing = parts - len(rows)
    rows += [Row([0, 0], [IGNORED, IGNORED])] * missing
    bounds = [round(part * len(rows) / parts) for part in range(parts + 1)]
    return [rows[start:end] for start, end in pairwise(bounds)]


def join(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows as flat tensors, named by `ROW_TENSORS`, to be saved."""
    return {
        "input_ids": torch.tensor([i for row in rows for i in row.input_ids], dtype=torch.int32),
        "trained": torch.tensor([label != IGNORED for row in rows for label in row.labels], dtype=torch.bool),
        "lengths": torch.tensor([len(row.input_ids) for row in rows], dtype=torch.int32),
    }


def split(tensors: dict[str, torch.Tensor]) -> list[Row]:
    """The inverse of `join`."""
    lengths = tensors["lengths"].tolist()
    labels = tensors["input_ids"].masked_fill(~tensors["trained"], IGNORED)
    pairs = zip(tensors["input_ids"].split(lengths), labels.split(lengths), strict=True)
    return [Row(ids.tolist(), row_labels.tolist()) for ids, row_labels in pairs]
