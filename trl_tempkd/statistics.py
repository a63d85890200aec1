# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Paired comparisons of two settings over the same training seeds and evaluation items, corrected over a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from .errors import UsageError


@dataclass(frozen=True)
class Comparison:
    """
    What is known of the mean difference between two settings.

    Args:
        difference (`float`):
            Mean over seeds and items of the second setting's scores less the first's.
        low (`float`):
            Lower end of the bootstrap interval.
        high (`float`):
            Upper end of the bootstrap interval.
        p_items (`float`):
            p-value of these very students on other items: a sign-flip test of the items' differences.
        p_seeds (`float` or `None`):
            p-value for other training seeds: a sign-flip test of the seeds' differences. With S seeds it cannot fall
            below 2 / 2^S, so fewer than 6 never reach 0.05; with one there is none.
        n_seeds (`int`):
            Number of training seeds, each with both settings.
        n_items (`int`):
            Number of evaluation items, each scored for both settings.
    """

    difference: float
    low: float
    high: float
    p_items: float
    p_seeds: float | None
    n_seeds: int
    n_items: int


def compare(
    first: Any,
    second: Any,
    *,
    confidence: float = 0.95,
    method: str = "percentile",
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """
    Compare two settings that share seeds and items.

    Args:
        first (`np.ndarray` of shape `(n_seeds, n_items)`):
            Scores of the first setting, such as tau 1.
        second (`np.ndarray` of shape `(n_seeds, n_items)`):
            Scores of the second one, for the same seeds and items in the same order.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence of the interval.
        method (`str`, *optional*, defaults to `"percentile"`):
            `"percentile"`, `"basic"` or `"BCa"`, as in `scipy.stats.bootstrap`.
        resamples (`int`, *optional*, defaults to `10_000`):
            Resamples of the bootstrap, and sign flips where there are too many to try all.
        seed (`int`, *optional*, defaults to `0`):
            Seed of both.

    Returns:
        [`Comparison`]: With several seeds, the interval is of a two-level bootstrap that draws seeds and items again,
        each with replacement. With one it covers the choice of items alone.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 2:
        raise UsageError(f"Expected two tables of seeds by items of one shape, got {first.shape} and {second.shape}.")
    n_seeds, n_items = first.shape
    if n_items < 2 or not n_seeds:
        raise UsageError(f"A comparison needs a seed and two items at least, got {n_seeds} and {n_items}.")
    difference = second - first
    if not np.isfinite(difference).all():
        raise UsageError("Every seed and item needs a finite score, got NaN or infinity.")
    if (difference == difference.flat[0]).all():  # nothing varies: BCa would divide by zero
        low = high = float(difference.flat[0])
    else:
        low, high = _interval(difference, confidence, method, resamples, seed)
    return Comparison(
        difference=float(difference.mean()),
        low=low,
        high=high,
        p_items=sign_flip_test(difference.mean(0), resamples, seed),
        p_seeds=sign_flip_test(difference.mean(1), resamples, seed) if n_seeds > 1 else None,
        n_seeds=n_seeds,
        n_items=n_items,
    )


def _interval(
    difference: np.ndarray, confidence: float, method: str, resamples: int, seed: int
) -> tuple[float, float]:
    """Seeds and items are resampled by their numbers, as two independent samples: the table follows."""
    n_seeds, n_items = difference.shape

    def mean(*numbers: np.ndarray, axis: int) -> np.ndarray:
        assert axis in (-1, numbers[0].ndim - 1)
        items = numbers[-1].astype(int)
        seeds = numbers[0].astype(int) if len(numbers) > 1 else np.zeros((*items.shape[:-1], 1), dtype=int)
        return difference[seeds[..., :, None], items[..., None, :]].mean((-2, -1))

    samples = [np.arange(n) for n in (n_seeds, n_items) if n > 1]
    result = stats.bootstrap(
        samples,
        mean,
        confidence_level=confidence,
        method=method,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // difference.size),
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_interval(
    scores: Any, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """
    Mean of a table of seeds by items with its percentile interval, by the two-level bootstrap of [`compare`]. Tables
    of one shape share their draws, so that many of them cost little.

    Args:
        scores (`np.ndarray` of shape `(n_seeds, n_items)`):
            Scores, or differences of scores.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence of the interval.
        resamples (`int`, *optional*, defaults to `10_000`):
            Resamples of the bootstrap.
        seed (`int`, *optional*, defaults to `0`):
            Its seed.

    Returns:
        `tuple[float, float, float]`: Mean, lower and upper end. Where there is one seed, the interval is over items
        alone, and where there is one item, over seeds alone.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise UsageError(f"Expected a table of seeds by items of finite scores, got the shape {scores.shape}.")
    seeds, items = (_draws(n, resamples, seed + i) for i, n in enumerate(scores.shape))
    means = np.einsum("ri,ri->r", seeds @ scores, items)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(scores.mean()), float(low), float(high)


@lru_cache(maxsize=8)
def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of n things is drawn in each of the resamples, as shares of n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n


def sign_flip_test(differences: Any, resamples: int = 10_000, seed: int = 0) -> float:
    """
    Two-sided paired permutation test: were the settings exchangeable, each difference could as well have the other
    sign. Exact where all the flips fit into `resamples`.
    """
    differences = np.asarray(differences, dtype=float)
    if len(differences) < 2:
        raise UsageError(f"A sign-flip test needs two differences at least, got {len(differences)}.")
    result = stats.permutation_test(
        (differences,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """
    Holm's step-down correction over a table: with m p-values, the k-th smallest times m - k + 1, at least as large as
    the ones before it and at most 1. `None` stays `None` and doesn't count.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[i] = largest
    return corrected
