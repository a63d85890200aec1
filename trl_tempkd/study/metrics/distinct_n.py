# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Distinct-n: how many of the n-grams of a set of texts are different from each other."""

import re
from collections.abc import Sequence

import datasets
import evaluate

from trl_tempkd.errors import UsageError


def distinct_n(predictions: Sequence[str], n: int) -> float:
    """
    Distinct n-grams of all texts together over the number of their n-grams. N-grams don't cross texts; words are
    lower-cased, and punctuation marks are words.

    Args:
        predictions (`Sequence[str]`):
            Texts to score.
        n (`int`):
            Length of the n-grams.

    Returns:
        `float`: From 0 to 1, and 0 where no text is long enough.
    """
    if n < 1:
        raise UsageError(f"`n` must be at least 1, got {n}.")
    words = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in predictions]
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


class DistinctN(evaluate.Metric):
    """[`distinct_n`] for n from 1 to `max_n`, as a metric: `distinct_1`, `distinct_2` and so on."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, 2016.",
            inputs_description=distinct_n.__doc__ or "",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: Sequence[str], max_n: int = 4) -> dict[str, float]:
        return {f"distinct_{n}": distinct_n(predictions, n) for n in range(1, max_n + 1)}
