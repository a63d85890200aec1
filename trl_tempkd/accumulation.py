# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The micro-batches of an optimizer step."""

from typing import Any

import torch


def filled(batches: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """
    As many batches as an optimizer step has, where a stream has ended before: repeated, and nothing in them counts.

    Transformers makes a step of every `gradient_accumulation_steps` batches. Of a data set with a length it knows
    which step is the last one of an epoch and has fewer. Of a stream it doesn't: the gradient of what is left over
    would stay and be added to that of the next step, each divided by its own number of tokens. Only the balancing loss
    of a mixture of experts, a mean over batches, counts what is repeated.

    Args:
        batches (`list[dict]`): batches with `labels`.
        count (`int`): how many a step has.
    """
    rest = [batches[i % len(batches)] for i in range(count - len(batches))]
    return batches + [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in rest]
