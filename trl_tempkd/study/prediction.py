# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Does one number, had before any training, predict what training gains? A straight line over points that come in groups,
such as the objectives of one teacher, judged by how well it predicts a group that it hasn't seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..errors import UsageError


@dataclass(frozen=True)
class Prediction:
    """
    A line, and how far it goes.

    Args:
        slope, intercept, correlation (`float`):
            Of all points; the correlation is Pearson's.
        slope_interval, correlation_interval (`tuple[float, float]`):
            95% intervals by the jackknife over groups, t with one degree of freedom less than there are groups.
        error, error_of_mean (`float`):
            Root mean square error on groups that were left out: of the line, and of the mean in its place.
        n_points, n_groups (`int`):
            How many there are.
    """

    slope: float
    intercept: float
    correlation: float
    slope_interval: tuple[float, float]
    correlation_interval: tuple[float, float]
    error: float
    error_of_mean: float
    n_points: int
    n_groups: int

    @property
    def holds(self) -> bool:
        """Whether the slope's interval leaves out 0, and the line is closer than the mean where it hasn't looked."""
        low, high = self.slope_interval
        return (low > 0 or high < 0) and self.error < self.error_of_mean


def predict(x: Sequence[float], y: Sequence[float], groups: Sequence[str]) -> Prediction:
    """
    Fit y over x by least squares, and judge it on each group by the line of the others.

    Args:
        x, y (`Sequence[float]`):
            The points.
        groups (`Sequence[str]`):
            What each point belongs to, at least three different ones: points of one group aren't independent.
    """
    xs, ys, of = np.asarray(x, dtype=float), np.asarray(y, dtype=float), np.asarray(groups)
    names = sorted(set(groups))
    if not len(xs) == len(ys) == len(of) or len(names) < 3 or np.ptp(xs) == 0:
        raise UsageError(f"Expected points of three groups or more whose x differs, got {len(xs)} of {len(names)}.")
    slope, intercept = _line(xs, ys)
    correlation = _correlation(xs, ys)
    lines = {name: _line(xs[of != name], ys[of != name]) for name in names}
    left_out = [lines[name][0] * xs[of == name] + lines[name][1] - ys[of == name] for name in names]
    means = [ys[of != name].mean() - ys[of == name] for name in names]
    correlations = [_correlation(xs[of != name], ys[of != name]) for name in names]
    return Prediction(
        slope,
        intercept,
        correlation,
        _jackknife(slope, [lines[name][0] for name in names]),
        _jackknife(correlation, correlations, limits=(-1.0, 1.0)),
        _root_mean_square(left_out),
        _root_mean_square(means),
        len(xs),
        len(names),
    )


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    centred = x - x.mean()
    spread = (centred**2).sum()
    slope = float((centred * y).sum() / spread) if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    norm = x.std() * y.std()
    return float(((x - x.mean()) * (y - y.mean())).mean() / norm) if norm > 0 else 0.0


def _jackknife(
    whole: float, without: Sequence[float], limits: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float]:
    count = len(without)
    error = np.sqrt((count - 1) * np.var(without))
    half = stats.t.ppf(0.975, count - 1) * error
    return max(float(whole - half), limits[0]), min(float(whole + half), limits[1])


def _root_mean_square(parts: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(np.mean(np.concatenate([np.atleast_1d(part) for part in parts]) ** 2)))
