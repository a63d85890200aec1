# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The one place of intervals and tests: a difference of two conditions over training seeds and evaluation items.

Both are drawn at random: other seeds give other students, other items ask them other things. The model is two-way
with random effects, d_si = mean + seed_s + item_i + rest_si, and its interval is Student's t with Satterthwaite's
degrees of freedom (Satterthwaite, An Approximate Distribution of Estimates of Variance Components, 1946).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from ..errors import UsageError


@dataclass(frozen=True)
class Estimate:
    """
    A mean over seeds and items, and how well it is known.

    Args:
        mean, error, freedom (`float`, or `np.ndarray` of one shape):
            The mean, its standard error, and the degrees of freedom of the t distribution.
        n_seeds, n_items (`int`):
            Number of training seeds and of evaluation items.
    """

    mean: Any
    error: Any
    freedom: Any
    n_seeds: int
    n_items: int

    def interval(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """Lower and upper end."""
        half = stats.t.ppf((1 + confidence) / 2, self.freedom) * self.error
        return self.mean - half, self.mean + half

    def above(self, bound: float = 0.0) -> Any:
        """One-sided p-value of the claim that the mean is above a bound."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.asarray(self.mean - bound, dtype=float) / self.error
        return np.where(np.isnan(t), 1.0, stats.t.sf(np.nan_to_num(t), self.freedom))[()]

    def below(self, bound: float = 0.0) -> Any:
        """One-sided p-value of the claim that the mean is below a bound."""
        return Estimate(-self.mean, self.error, self.freedom, self.n_seeds, self.n_items).above(-bound)


def estimate(table: Any) -> Estimate:
    """
    The mean of a table of seeds by items, as of random seeds and random items.

    Args:
        table (`np.ndarray` of shape `(..., n_seeds, n_items)`):
            Scores, or paired differences of scores, all finite.

    Returns:
        [`Estimate`]: With one seed it covers the choice of items alone, with one item the choice of seeds alone, and a
        table of one number has an infinite error.
    """
    table = np.asarray(table, dtype=float)
    if table.ndim < 2 or not table.size or not np.isfinite(table).all():
        raise UsageError(f"Expected tables of seeds by items of finite scores, got the shape {table.shape}.")
    n_seeds, n_items = table.shape[-2:]
    mean = table.mean((-2, -1))
    of_seeds, of_items = table.mean(-1), table.mean(-2)
    rest = table - of_seeds[..., :, None] - of_items[..., None, :] + mean[..., None, None]
    f_seeds, f_items = n_seeds - 1, n_items - 1
    f_rest = f_seeds * f_items
    # Mean squares of the two-way analysis of variance
    seeds = n_items * (of_seeds - mean[..., None]).var(-1, ddof=0) * n_seeds / max(f_seeds, 1)
    items = n_seeds * (of_items - mean[..., None]).var(-1, ddof=0) * n_items / max(f_items, 1)
    error = (rest**2).sum((-2, -1)) / max(f_rest, 1)
    # A component of variance is not negative: where its mean square is below that of the rest, it is left out
    seeds, items = np.where(seeds > error, seeds, 0.0), np.where(items > error, items, 0.0)
    variance = np.maximum(seeds - error, 0) + np.maximum(items - error, 0) + error
    if n_seeds == 1 or n_items == 1:
        variance = items if n_seeds == 1 else seeds
    if n_seeds == n_items == 1:
        variance = np.full_like(mean, np.inf)
    squares = sum(
        square**2 / freedom for square, freedom in ((seeds, f_seeds), (items, f_items), (error, f_rest)) if freedom
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(np.asarray(squares) > 0, variance**2 / squares, np.inf)
    return Estimate(
        mean[()], np.sqrt(variance / (n_seeds * n_items))[()], np.maximum(freedom, 1.0)[()], n_seeds, n_items
    )


def at_least(count: int, p_values: Sequence[Any]) -> Any:
    """
    p-value of the claim that at least so many of some claims hold: 1 of n is Bonferroni's, n of n the largest.

    Source: Benjamini and Heller, Screening for Partial Conjunction Hypotheses, Biometrics 64, 2008 (by Bonferroni).
    """
    ordered = np.sort(np.asarray(p_values, dtype=float), axis=0)
    return np.minimum((len(ordered) - count + 1) * ordered[count - 1], 1.0)[()]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """
    Holm's step-down correction: with m p-values, the k-th smallest times m - k + 1, at least as large as the ones
    before it and at most 1. `None` stays `None` and doesn't count.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[i] = largest
    return corrected
