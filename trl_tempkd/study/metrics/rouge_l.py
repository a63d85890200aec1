# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""ROUGE-L as MiniLLM counts it."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from trl_tempkd.errors import UsageError


def rouge_l(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[float]:
    """
    ROUGE-L of each prediction, as MiniLLM counts it: F-measure on stemmed words, best over the references, times 100.
    What papers report is the mean.

    Args:
        predictions (`Sequence[str]`):
            Texts to score.
        references (`Sequence[str]` or `Sequence[Sequence[str]]`):
            For each prediction its reference or references.

    Returns:
        `list[float]`: For each prediction its score, from 0 to 100.
    """
    if len(predictions) != len(references):
        raise UsageError(f"Every prediction needs its references, got {len(predictions)} and {len(references)}.")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    targets = ((p, [r] if isinstance(r, str) else list(r)) for p, r in pairs)
    return [100 * scorer.score_multi(r, p)["rougeL"].fmeasure for p, r in targets]


class RougeL(evaluate.Metric):
    """[`rouge_l`] as a metric: the mean over the predictions, or with `use_aggregator=False` all of them."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.",
            inputs_description=rouge_l.__doc__ or "",
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str | Sequence[str]], use_aggregator: bool = True
    ) -> dict[str, Any]:
        scores = rouge_l(predictions, references)
        return {"rouge_l": float(np.mean(scores)) if use_aggregator else scores}
