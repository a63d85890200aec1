# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Quality at equal diversity: a sharper model samples likelier tokens, and scores higher for that alone.

A model is sampled at several temperatures, which gives a curve of ROUGE-L over self-BLEU. Students are compared where
their curves have the same self-BLEU. The texts of a set are not independent in it, each being scored against all the
others, so that an interval resamples texts, not scores: the curve is measured again without each tenth of the texts.
Self-BLEU grows with the number of texts, so that only curves of as many can be compared.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .evaluation import Completion, sample
from .metrics import rouge_l, self_bleu


GROUPS = 10  # parts of the texts, each left out once
MEASURES = ("rouge_l", "self_bleu", "length")
SCORE, LENGTH = "rouge_l_at_self_bleu_", "length_at_self_bleu_"  # and the value, as in `rouge_l_at_self_bleu_20`


def measure_curve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    references: Sequence[Sequence[str]],
    temperatures: Iterable[float],
    seeds: Iterable[int],
    found: list[dict[str, Any]] | None = None,
    save: Callable[[list[dict[str, Any]]], None] = lambda curve: None,
    **sampling: Any,
) -> list[dict[str, Any]]:
    """
    Sample at several temperatures, and measure.

    Args:
        model, tokenizer, prompts:
            As for [`~trl_tempkd.study.evaluation.sample`].
        references (`Sequence[Sequence[str]]`):
            Of each prompt, at least one.
        temperatures, seeds (`Iterable[float]`, `Iterable[int]`):
            Of sampling. The measures are means over the seeds.
        found (`list[dict]`, *optional*):
            What an earlier call has saved: those temperatures aren't sampled again.
        save (`Callable`, *optional*):
            Called with the curve after each temperature.

    Returns:
        `list[dict]`: For each temperature `rouge_l`, `self_bleu` and `length` (tokens), each a list: of all texts, and
        then without each of `GROUPS` parts of them.
    """
    curve = list(found or [])
    for temperature in temperatures:
        if any(point["temperature"] == temperature for point in curve):
            continue
        runs = [
            measured(sample(model, tokenizer, prompts, temperature=temperature, seed=seed, **sampling), references)
            for seed in seeds
        ]
        curve.append({"temperature": temperature, **{name: _mean([run[name] for run in runs]) for name in MEASURES}})
        save(curve)
    return curve


def measured(completions: Sequence[Completion], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """The measures of all texts, and of those without each part."""
    texts = [completion.text for completion in completions]
    quality, lengths = np.array(rouge_l(texts, references)), np.array([each.length for each in completions])
    parts = np.arange(len(texts)) % GROUPS
    kept = [np.ones(len(texts), dtype=bool), *(parts != part for part in range(GROUPS))]
    return {
        "rouge_l": [float(quality[part].mean()) for part in kept],
        "self_bleu": [float(np.mean(self_bleu([texts[i] for i in np.flatnonzero(part)]))) for part in kept],
        "length": [float(lengths[part].mean()) for part in kept],
    }


def _mean(columns: Sequence[Sequence[float]]) -> list[float]:
    return np.mean(columns, axis=0).tolist()


def read_off(curve: Sequence[dict[str, Any]], value: float, measure: str = "rouge_l") -> list[float] | None:
    """
    A measure at a given self-BLEU, on straight lines between the points.

    Returns:
        `list[float]`: For each part of the texts a pseudo-value of the delete-a-group jackknife: their mean is the
        measure at this self-BLEU, and their scatter that of other texts. `None` where the curve doesn't reach it.
    """
    if not curve:
        return None
    values = []
    for number in range(GROUPS + 1):
        points = sorted((point["self_bleu"][number], point[measure][number]) for point in curve)
        x, y = zip(*points, strict=True)
        if number == 0 and not x[0] <= value <= x[-1]:
            return None
        values.append(float(np.interp(value, x, y)))
    return pseudo_values(values)


def pseudo_values(values: Sequence[float]) -> list[float]:
    """Of what [`measured`] gives. Their mean is the measure, their scatter that of other texts."""
    whole, without = values[0], np.array(values[1:])
    return (whole - (GROUPS - 1) * (without - without.mean())).tolist()


def common_range(curves: Iterable[Sequence[dict[str, Any]]]) -> tuple[float, float] | None:
    """The self-BLEU that all of the curves reach, from and to; `None` where there is none."""
    ends = [[point["self_bleu"][0] for point in curve] for curve in curves if curve]
    if not ends:
        return None
    low, high = max(map(min, ends)), min(map(max, ends))
    return (low, high) if low <= high else None


def at_even_diversity(curve: Sequence[dict[str, Any]]) -> list[tuple[float, float, float]]:
    """Self-BLEU, ROUGE-L and length at each multiple of 5 that a curve reaches, or of 1 where it is short."""
    ends = common_range([curve])
    if ends is None:
        return []
    low, high = ends
    step = 5 if high - low >= 10 else 1
    points = sorted((each["self_bleu"][0], each["rouge_l"][0], each["length"][0]) for each in curve)
    x, *measures = zip(*points, strict=True)
    values = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return [(float(value), *(float(np.interp(value, x, y)) for y in measures)) for value in values]  # type: ignore[misc]
