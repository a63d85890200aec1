# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Intervals and tests against cases worked by hand, and on data whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from trl_tempkd.errors import UsageError
from trl_tempkd.study.statistics import Estimate, at_least, estimate, holm


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; the last two may not fall below the second
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_rejects_as_the_definition_says():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, size=6)
        rejected = np.zeros(6, dtype=bool)
        for rank, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (6 - rank):
                break
            rejected[i] = True
        assert [value <= 0.05 for value in holm(list(p))] == rejected.tolist()


def test_an_estimate_by_hand():
    """Two seeds by three items: mean squares of the analysis of variance, and Satterthwaite's degrees of freedom."""
    table = np.array([[1.0, 4.0, 4.0], [6.0, 5.0, 10.0]])
    seeds = 3 * ((3 - 5) ** 2 + (7 - 5) ** 2) / 1
    items = 2 * ((3.5 - 5) ** 2 + (4.5 - 5) ** 2 + (7 - 5) ** 2) / 2
    rest = sum((table[s, i] - (3, 7)[s] - (3.5, 4.5, 7)[i] + 5) ** 2 for s in range(2) for i in range(3)) / 2
    variance = seeds + items - rest
    found = estimate(table)
    assert found.mean == 5 and (found.n_seeds, found.n_items) == (2, 3)
    assert found.error == pytest.approx((variance / 6) ** 0.5, rel=1e-12)
    assert found.freedom == pytest.approx(variance**2 / (seeds**2 / 1 + items**2 / 2 + rest**2 / 2), rel=1e-12)
    low, high = found.interval()
    assert (low + high) / 2 == pytest.approx(5) and high - 5 == pytest.approx(
        stats.t.ppf(0.975, found.freedom) * found.error
    )
    # The interval and the p-values are of one distribution
    assert found.above(low) == pytest.approx(0.025) and found.below(high) == pytest.approx(0.025)


def test_one_seed_or_one_item_is_a_t_test_of_the_others():
    values = np.random.default_rng(0).normal(0.3, 1, 9)
    expected = stats.ttest_1samp(values, 0, alternative="greater").pvalue
    for table in (values[None], values[:, None]):
        assert estimate(table).above() == pytest.approx(expected)
    assert estimate([[3.0]]).interval() == (-np.inf, np.inf)


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(0)
    rest = rng.normal(size=(3, 200))
    together, apart = estimate(rest), estimate(rest + np.array([[-1.0], [0.0], [1.0]]))
    assert apart.error > 5 * together.error and apart.freedom < 3 < together.freedom


def test_nothing_varies():
    same, none = estimate(np.ones((3, 4))), estimate(np.zeros((3, 4)))
    assert (same.above(), same.below(), none.above(), none.below()) == (0, 1, 1, 1)
    assert same.interval() == (1, 1)


def test_several_tables_at_once():
    tables = np.random.default_rng(0).normal(size=(5, 3, 20))
    found = estimate(tables)
    assert found.mean.shape == found.error.shape == found.above().shape == (5,)
    one = estimate(tables[3])
    assert (found.mean[3], found.error[3], found.freedom[3]) == (one.mean, one.error, one.freedom)


@pytest.mark.parametrize("seeds", [1, 5])
def test_coverage(seeds):
    """The interval holds the truth about nineteen times in twenty; with one seed, that of these very students."""
    rng = np.random.default_rng(1)
    of_seeds = 0 if seeds == 1 else rng.normal(0, 0.5, (3000, seeds, 1))
    low, high = estimate(
        1 + of_seeds + rng.normal(0, 2, (3000, 1, 60)) + rng.normal(0, 3, (3000, seeds, 60))
    ).interval()
    assert 0.935 < ((low < 1) & (high > 1)).mean() < 0.975


def test_at_least():
    assert at_least(1, [0.01, 0.4, 0.5]) == pytest.approx(0.03)  # Bonferroni
    assert at_least(2, [0.01, 0.02, 0.5]) == pytest.approx(0.04)
    assert at_least(3, [0.01, 0.02, 0.5]) == 0.5
    assert at_least(1, [0.6, 0.9]) == 1
    assert at_least(1, np.array([[0.01, 0.5], [0.2, 0.6]])) == pytest.approx([0.02, 1.0])


@pytest.mark.parametrize("table", [[], [1.0, 2.0], [[1.0, float("nan")]], [[]]])
def test_refused(table):
    with pytest.raises(UsageError, match="Expected tables of seeds by items of finite scores"):
        estimate(table)


def test_a_bound_on_either_side():
    found = Estimate(1.0, 0.5, 1e9, 3, 10)
    assert found.above(1.0) == found.below(1.0) == pytest.approx(0.5)
    assert found.above(0.0) == pytest.approx(stats.norm.sf(2), rel=1e-4) == found.below(2.0)
