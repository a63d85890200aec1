# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Self-BLEU: how much the texts of a set are like each other."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np


def self_bleu(predictions: Sequence[str], max_n: int = 4) -> list[float]:
    """
    BLEU of each text with all the others as its references, times 100: equal to nltk's `sentence_bleu` with its
    smoothing `method1`, but in one pass over the n-grams rather than one per pair of texts. What papers report is the
    mean. Words are lower-cased, and punctuation marks are words.

    Args:
        predictions (`Sequence[str]`):
            Texts to score.
        max_n (`int`, *optional*, defaults to `4`):
            Longest n-grams. All lengths weigh the same.

    Returns:
        `list[float]`: For each text its score, from 0 to 100, and 0 for a text that stands alone.
    """
    words = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in predictions]
    if len(words) < 2:
        return [0.0] * len(words)
    lengths = [len(row) for row in words]
    logs, any_word = np.zeros(len(words)), np.zeros(len(words), dtype=bool)
    for n in range(1, max_n + 1):
        counts = [Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1)) for row in words]
        # Of each n-gram, the text that has it most often, and how often the others have it at most
        best: dict[tuple[str, ...], tuple[int, int, int]] = {}
        for i, grams in enumerate(counts):
            for gram, count in grams.items():
                most, owner, second = best.get(gram, (0, -1, 0))
                best[gram] = (count, i, most) if count > most else (most, owner, max(second, count))
        for i, grams in enumerate(counts):
            hits = 0
            for gram, count in grams.items():
                most, owner, second = best[gram]
                hits += min(count, second if owner == i else most)
            if n == 1:
                any_word[i] = hits > 0
            logs[i] += math.log((hits or 0.1) / max(grams.total(), 1)) / max_n
    scores = []
    for i, own in enumerate(lengths):
        others = lengths[:i] + lengths[i + 1 :]
        closest = min(others, key=lambda other: (abs(other - own), other))
        penalty = 1 if own > closest else math.exp(1 - closest / own) if own else 0
        scores.append(100 * penalty * math.exp(logs[i]) if any_word[i] else 0.0)
    return scores


class SelfBLEU(evaluate.Metric):
    """[`self_bleu`] as a metric: the mean over the texts, or with `use_aggregator=False` all of them."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Zhu et al., Texygen: A Benchmarking Platform for Text Generation Models, 2018.",
            inputs_description=self_bleu.__doc__ or "",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: Sequence[str], max_n: int = 4, use_aggregator: bool = True) -> dict[str, Any]:
        scores = self_bleu(predictions, max_n)
        return {"self_bleu": float(np.mean(scores)) if use_aggregator else scores}
