# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Rows that a data collator pads on the left are moved to the left end, so that the padding is on the right.

Padding before the tokens shifts absolute positions, runs through a recurrence before they come, and predicts the first
of them. Behind the tokens it does nothing to a causal model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .compat import DataCollatorForLanguageModeling
from .vision import VisionCollator


Batch = dict[str, Any]
Collator = Callable[[list[dict[str, Any]]], Batch]


def right_padded(batch: Batch) -> Batch:
    """
    The batch with what its attention mask leaves out at the start of a row at the end of it.

    Args:
        batch (`dict`):
            Batch as a data collator makes it. Without an `attention_mask` of shape `(B, L)` nothing is moved.

    Returns:
        `dict`: The batch itself if no row begins with padding. Else one with all tensors of shape `(B, L, ...)` moved.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return batch
    padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)  # (B, 1), before the first token
    if not padding.any():
        return batch
    rows = torch.arange(mask.shape[0], device=mask.device)[:, None]
    columns = (torch.arange(mask.shape[1], device=mask.device) + padding) % mask.shape[1]
    return {name: x[rows, columns] if _is_of(x, mask) else x for name, x in batch.items()}


def _is_of(value: Any, mask: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape


def aligned(collator: Collator) -> Collator:
    """The same data collator, whose rows are padded on the right, as TRL's own are and those of rows with images."""
    right = (DataCollatorForLanguageModeling, VisionCollator)
    return collator if type(collator) in right else partial(_collate, collator)


def _collate(collator: Collator, rows: list[dict[str, Any]]) -> Batch:
    return right_padded(collator(rows))
