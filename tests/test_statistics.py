# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Paired statistics against cases worked by hand, and on data whose truth is known."""

from itertools import product

import numpy as np
import pytest

from trl_tempkd.statistics import compare, holm, mean_interval, sign_flip_test


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


def test_sign_flips_by_hand():
    # Of the 16 sign patterns, the mean is as far from 0 as it is here in the one and its mirror image
    assert sign_flip_test([1.0, 2.0, 3.0, 4.0]) == pytest.approx(2 / 16)
    assert sign_flip_test([1.0, -1.0, 1.0, -1.0]) == pytest.approx(1.0)
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0


def test_sign_flips_against_all_patterns():
    values = np.random.default_rng(1).normal(0.4, 1, size=9)
    means = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=9)]
    expected = np.mean(np.array(means) >= abs(values.sum()) - 1e-12)
    assert sign_flip_test(values) == pytest.approx(expected)


def test_numbers_of_a_comparison():
    first, second = np.zeros((3, 4)), np.array([[1.0, 2, 3, 4], [2, 3, 4, 5], [0, 1, 2, 3]])
    found = compare(first, second, resamples=2000)
    assert (found.n_seeds, found.n_items) == (3, 4)
    assert found.difference == pytest.approx(2.5)
    assert found.low < 2.5 < found.high
    assert found.p_items == pytest.approx(2 / 16)
    assert found.p_seeds == pytest.approx(2 / 8)
    back = compare(second, first, resamples=2000)
    assert (back.difference, back.low, back.high) == pytest.approx((-2.5, -found.high, -found.low), abs=0.15)
    assert back.p_items == found.p_items


def test_one_seed_is_a_bootstrap_over_items():
    values = np.random.default_rng(2).normal(1, 2, size=400)
    found = compare(np.zeros((1, 400)), values[None])
    half = 1.96 * values.std() / 20
    assert found.p_seeds is None and found.n_seeds == 1
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_seeds_widen_the_interval():
    """Differences that depend on the seed alone: the interval over items would have no width."""
    table = np.array([[0.0], [1.0], [2.0], [3.0]]) + np.zeros((1, 100))
    found = compare(np.zeros_like(table), table)
    # The mean of 4 draws out of 0..3, with replacement, has the standard deviation sqrt(1.25 / 4)
    assert found.low == pytest.approx(1.5 - 1.96 * np.sqrt(1.25 / 4), abs=0.2)
    assert found.high == pytest.approx(1.5 + 1.96 * np.sqrt(1.25 / 4), abs=0.2)


def test_nothing_varies():
    found = compare(np.zeros((2, 3)), np.ones((2, 3)), method="BCa")
    assert (found.difference, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_coverage(method):
    """Seeds and items both have effects of their own: about 95% of the intervals hold the truth."""
    rng, held, rounds = np.random.default_rng(3), 0, 100
    for _ in range(rounds):
        seeds, items = rng.normal(0, 0.3, size=(12, 1)), rng.normal(0, 1, size=(1, 40))
        table = 0.5 + seeds + items + rng.normal(0, 0.5, size=(12, 40))
        found = compare(np.zeros_like(table), table, method=method, resamples=400)
        held += found.low <= 0.5 <= found.high
    assert 0.87 * rounds <= held <= rounds


def test_false_alarms():
    rng = np.random.default_rng(4)
    p = [sign_flip_test(rng.normal(size=30), resamples=400, seed=i) for i in range(200)]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.09


@pytest.mark.parametrize(
    "first, second, message",
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), r"got \(2, 3\) and \(2, 4\)"),
        (np.zeros(3), np.zeros(3), "seeds by items"),
        (np.zeros((2, 1)), np.zeros((2, 1)), "two items at least, got 2 and 1"),
        (np.zeros((1, 2)), np.full((1, 2), np.nan), "finite"),
    ],
)
def test_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        compare(first, second)


def test_sign_flips_refuse_one():
    with pytest.raises(ValueError, match="two differences at least, got 1"):
        sign_flip_test([1.0])


def test_the_interval_of_a_mean_is_that_of_a_comparison():
    table = np.random.default_rng(4).normal(0.3, 1, size=(4, 60)) + np.arange(4)[:, None] / 4
    mean, low, high = mean_interval(table)
    found = compare(np.zeros_like(table), table)
    assert mean == pytest.approx(found.difference)
    assert (low, high) == pytest.approx((found.low, found.high), abs=0.02)


def test_the_interval_of_a_mean_where_one_side_is_single():
    rows = np.random.default_rng(5).normal(1, 2, size=400)
    half = 1.96 * rows.std() / 20
    for table in (rows[None], rows[:, None]):  # one seed: over items; one item: over seeds
        assert mean_interval(table)[1:] == pytest.approx((rows.mean() - half, rows.mean() + half), abs=0.03)
    assert mean_interval([[3.0]]) == (3, 3, 3)


@pytest.mark.parametrize("table", [[1.0, 2.0], [[]], [[1.0, np.nan]]])
def test_tables_without_a_mean(table):
    with pytest.raises(ValueError, match="Expected a table of seeds by items of finite scores"):
        mean_interval(table)
