# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
A teacher that reads a prompt of its own: its batch beside the student's, and where each says the same tokens.

Both batches are made by the same collator of rows in the same order, and have labels at the same tokens. So the first
label of the one belongs to the first of the other, whatever stands before it and however rows are padded or packed.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ..errors import UsageError
from ..losses import Logits, Truncated
from ..row_formats import CONTEXTS, contexts_of


OWN = "teacher_batch"  # in a batch: the teacher's own
_IGNORED = -100

Batch = dict[str, Any]
Known: TypeAlias = Any  # `Tensor | Logits | Truncated`, or what has a `select` of its own


@dataclass(frozen=True)
class OwnBatch:
    """
    What the teacher reads in the place of a batch. No container, so that it is passed on as it is.

    Attributes:
        inputs (`dict`):
            Its batch, without labels.
        source (`torch.Tensor` of shape `(B * L,)`):
            For each position of the student that predicts a token with a label, the position of the teacher's
            flattened batch that does. Meaningless for the others.
    """

    inputs: Batch
    source: Tensor

    def placed(self, known: Known) -> Known:
        """What the teacher says, `(B' * L', ...)`, at the student's positions, `(B * L, ...)`."""
        return selected(known, self.source)


def selected(known: Known, rows: Tensor) -> Known:
    """Some rows of what is known of a teacher, by their numbers."""
    if isinstance(known, Tensor):
        return known.index_select(0, rows.to(known.device))
    if isinstance(known, Logits):
        return Logits(known.values.index_select(0, rows.to(known.values.device)))
    if isinstance(known, Truncated):
        return known.select(rows.to(known.ids.device))
    return known.select(rows)  # of several teachers


def targets_of(labels: Tensor) -> Tensor:
    """The positions of a flattened batch that predict a token with a label, in their order."""
    return (nn.functional.pad(labels, (0, 1), value=_IGNORED)[:, 1:] != _IGNORED).flatten().nonzero().squeeze(-1)


def read_in_place_of(batch: Batch) -> Batch:
    """What the teacher reads of a batch."""
    return batch[OWN].inputs if OWN in batch else batch


class OwnPromptCollator:
    """
    What another collator makes of some rows, and the batch that the teacher reads in its place.

    Args:
        collator (`Callable`):
            The other collator. It keeps the order of the rows.
        plain (`Callable`):
            The collator of the tokens alone.
    """

    def __init__(self, collator: Any, plain: Any):
        self.collator, self.plain = collator, plain

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        if not any(CONTEXTS in row for row in examples):
            return self.collator(examples)
        batch = self.collator([{name: row[name] for name in row if name != CONTEXTS} for row in examples])
        own = self.plain([row for example in examples for row in read_rows(example)])
        mine, theirs = targets_of(batch["labels"]), targets_of(own.pop("labels"))
        if len(mine) != len(theirs):
            raise UsageError(
                f"The data collator made {len(mine)} tokens with a label of the student's rows and {len(theirs)} of "
                "the teacher's: with `teacher_prompt` it must keep every label. Use TRL's own."
            )
        source = torch.zeros(batch["labels"].numel(), dtype=torch.long).index_copy_(0, mine, theirs)
        batch[OWN] = OwnBatch(own, source)
        return batch


def read_rows(example: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the teacher reads in the place of one, which may hold several texts."""
    ids, labels = list(example["input_ids"]), list(example["labels"])
    ends = list(accumulate(example["seq_lengths"])) if "seq_lengths" in example else [len(ids)]
    contexts = contexts_of(example[CONTEXTS]) if CONTEXTS in example else [[]] * len(ends)
    rows = []
    for start, end, context in zip([0, *ends], ends, contexts, strict=False):
        own, targets = ids[start:end], labels[start:end]
        first = next((i for i in range(1, len(targets)) if targets[i] != _IGNORED), None)
        if first is not None and context:
            own = [*context, *own[first:]]
            targets = [_IGNORED] * len(context) + targets[first:]
        rows.append({"input_ids": own, "labels": targets})
    return rows


def on_device(own: OwnBatch, device: torch.device) -> Batch:
    """The teacher's batch where the student's is."""
    return dict(send_to_device(own.inputs, device))


def check_positions(inputs: Batch, model: nn.Module | None) -> None:
    """
    Refuse a row that is longer than a model with a table of positions can read.

    Raises:
        [`UsageError`]: Names the lengths.
    """
    config = None if model is None else model.config.get_text_config()
    if config is None or getattr(config, "rope_parameters", None):
        return
    most, mask = getattr(config, "max_position_embeddings", None), inputs.get("attention_mask")
    positions = inputs.get("position_ids")
    length = inputs["input_ids"].shape[1] if mask is None else int(mask.sum(1).max())
    length = length if mask is not None or positions is None else int(positions.max()) + 1
    if most and length > most:
        raise UsageError(
            f"With its `teacher_prompt` a row has {length} tokens, and the teacher has positions for {most}. Shorten "
            "it, or leave the row out: `max_length` cuts the student's row alone."
        )
