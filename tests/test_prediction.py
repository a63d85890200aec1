# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Whether a number predicts another, on groups that the line hasn't seen."""

import numpy as np
import pytest

from trl_tempkd.errors import UsageError
from trl_tempkd.study.prediction import predict


def points(slope, noise, of_group=0.0, groups=10, each=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=groups * each)
    names = [f"g{i // each}" for i in range(groups * each)]
    shifts = np.repeat(of_group * rng.normal(size=groups), each)
    return x, slope * x + 1 + shifts + noise * rng.normal(size=len(x)), names


def test_a_line_without_noise():
    x, y, names = points(2.0, 0.0)
    found = predict(x, y, names)
    assert (found.slope, found.intercept, found.correlation) == pytest.approx((2.0, 1.0, 1.0))
    assert found.error == pytest.approx(0.0, abs=1e-12) and found.error_of_mean > 1
    assert found.holds and (found.n_points, found.n_groups) == (20, 10)


def test_equals_numpy():
    x, y, names = points(0.5, 1.0)
    found = predict(x, y, names)
    assert (found.slope, found.intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_the_error_is_of_groups_that_were_left_out():
    """Two points a group, by hand."""
    x, y, names = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 5.0, 2.0, 4.0, 9.0], ["a", "a", "b", "b", "c", "c"]
    squares, of_mean = [], []
    for group in "abc":
        rest = [i for i in range(6) if names[i] != group]
        line = np.polyfit([x[i] for i in rest], [y[i] for i in rest], 1)
        own = [i for i in range(6) if names[i] == group]
        squares += [(np.polyval(line, x[i]) - y[i]) ** 2 for i in own]
        of_mean += [(np.mean([y[j] for j in rest]) - y[i]) ** 2 for i in own]
    found = predict(x, y, names)
    assert (found.error, found.error_of_mean) == pytest.approx((np.mean(squares) ** 0.5, np.mean(of_mean) ** 0.5))


@pytest.mark.parametrize("of_group", [0.0, 1.0])
def test_chance_seldom_holds(of_group):
    """Where there is nothing, a slope is claimed in about one of twenty studies, also where groups have shifts."""
    held = [predict(*points(0.0, 1.0, of_group, seed=seed)).holds for seed in range(300)]
    assert np.mean(held) < 0.09


def test_a_strong_line_holds():
    assert np.mean([predict(*points(2.0, 1.0, seed=seed)).holds for seed in range(50)]) > 0.95


def test_too_few_groups():
    with pytest.raises(UsageError, match="three groups"):
        predict([1, 2], [1, 2], ["a", "b"])
    with pytest.raises(UsageError, match="whose x differs"):
        predict([1, 1, 1], [1, 2, 3], ["a", "b", "c"])
