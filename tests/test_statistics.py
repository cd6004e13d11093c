"""Intervals, tests and values over cases, against numbers worked out by hand and other programs."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from glimpseg.modality import ALL, SUBSETS, Modality
from glimpseg.results.statistics import Bootstrap, Interval, additions, holm, paired, shapley

NOTHING = Modality(0)


def table(rng, cases=5):
    return {subset: rng.random(cases) for subset in (NOTHING, *SUBSETS)}


# Bootstrap


def test_the_mean_is_over_cases_then_over_subsets():
    values = np.array([[1.0, 10.0], [3.0, np.nan]])
    assert Bootstrap(2).interval(values).mean == pytest.approx((2 + 10) / 2)


def test_the_interval_is_scipys():
    values = np.random.default_rng(3).normal(5, 2, 40)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    ours = Bootstrap(40).interval(values)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_the_ends_are_quantiles_of_the_binomial_distribution():
    # A column that is 1 in 4 of 8 cases, else 0: the mean of 8 draws is B / 8, and B is binomial of 8 draws at 1/2.
    low, high = stats.binom(8, 0.5).ppf([0.025, 0.975]) / 8
    assert (low, high) == (0.125, 0.875)  # P(B = 0) = 0.4 %, P(B <= 1) = 3.5 %
    column = np.array([1.0, 1, 1, 1, 0, 0, 0, 0])
    assert Bootstrap(8).interval(column) == Interval(mean=0.5, low=0.125, high=0.875, cases=8)
    # A column beside it that is always 0.5 moves mean and ends half way to 0.5.
    both = np.stack([column, np.full(8, 0.5)], axis=1)
    assert Bootstrap(8).interval(both) == Interval(mean=0.5, low=0.3125, high=0.6875, cases=8)


def test_the_ends_hold_95_of_100_means_of_resamples():
    # 1 in 30 of 60 cases: B / 60 of B binomial of 60 draws at 1/2. P(B <= 21) = 1.4 %, P(B <= 22) = 2.6 %: on the edge,
    # so that the low end is 22 / 60 or its neighbour. 90 % would end at 24 / 60, 99 % at 20 / 60.
    column = (np.arange(60) < 30).astype(float)
    found = Bootstrap(60).interval(column)
    assert 60 * found.low == pytest.approx(22.5, abs=0.6)
    assert 60 * found.high == pytest.approx(37.5, abs=0.6)


def test_the_seed_is_0_and_another_seed_draws_other_cases():
    values = np.random.default_rng(1).random(12)
    assert Bootstrap(12).interval(values) == Bootstrap(12, seed=0).interval(values)
    assert Bootstrap(12).interval(values) != Bootstrap(12, seed=1).interval(values)


def test_resamples_that_lack_a_subset_are_left_out_if_they_are_few():
    # 8 of 120 cases have a column. A resample holds none of them with (112 / 120)^120 = 0.03 %: 3 of 10,000.
    values = np.full(120, np.nan)
    values[:8] = [1, 1, 1, 1, 0, 0, 0, 0]
    found = Bootstrap(120).interval(values)
    assert (found.mean, found.cases) == (0.5, 8)
    # Draws of the 8 differ in number, about 8 +- 2.7; the ends stay near those of 8 draws.
    assert (found.low, found.high) == pytest.approx((0.125, 0.875), abs=0.07)


def test_there_is_no_interval_if_more_than_1_of_100_resamples_lack_some_subset():
    # 60 columns, each of 8 other cases of 480. A resample lacks a given one with (472 / 480)^480 = 0.03 %, some one of
    # the 60 with about 1.9 %.
    values = np.full((480, 60), np.nan)
    for column in range(60):
        values[8 * column : 8 * (column + 1), column] = column
    found = Bootstrap(480).interval(values)
    assert (found.mean, found.cases) == (29.5, 8)  # the mean of 0 ... 59
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.default_rng(0)
    bootstrap = Bootstrap(40)
    held = [i.low <= 1 <= i.high for i in (bootstrap.interval(rng.exponential(1, 40)) for _ in range(400))]
    assert 0.88 < np.mean(held) < 0.97  # percentile intervals of a skewed variable are known to be a little narrow


def test_one_case_has_no_interval():
    found = Bootstrap(1).interval(np.array([[0.7]]))
    assert (found.mean, found.cases) == (0.7, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_few_cases_have_no_interval():
    assert math.isnan(Bootstrap(7).interval(np.arange(7.0)).low)
    assert not math.isnan(Bootstrap(8).interval(np.arange(8.0)).low)


def test_a_subset_that_few_cases_have_leaves_the_mean_without_an_interval():
    values = np.random.default_rng(0).random((16, 15))
    values[1:, :14] = np.nan
    found = Bootstrap(16).interval(values)
    assert (math.isnan(found.low), found.cases) == (True, 1)


def test_cases_that_share_no_subset_have_no_interval():
    values = np.where(np.eye(15, dtype=bool), 0.5, np.nan)
    assert math.isnan(Bootstrap(15).interval(values).low)


def test_cases_without_a_value_do_not_count():
    found = Bootstrap(3).interval(np.array([1.0, np.nan, 3.0]))
    assert (found.mean, found.cases) == (2.0, 2)


def test_nothing_scored_is_no_number():
    found = Bootstrap(2).interval(np.full((2, 1), np.nan))
    assert found.cases == 0
    assert all(math.isnan(value) for value in (found.mean, found.low, found.high))


def test_the_same_numbers_give_the_same_interval():
    values = np.random.default_rng(1).random((12, 15))
    assert Bootstrap(12).interval(values) == Bootstrap(12).interval(values)


def test_an_interval_over_subsets_knows_that_cases_are_the_same():
    # 15 copies of one column say no more than the column itself.
    column = np.random.default_rng(1).random((20, 1))
    one, many = Bootstrap(20).interval(column), Bootstrap(20).interval(np.repeat(column, 15, axis=1))
    assert (many.low, many.high) == pytest.approx((one.low, one.high))


# Paired tests


def test_six_wins_of_six_have_p_of_one_in_32():
    a, b = np.zeros(6), np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    found = paired(a, b, 1, Bootstrap(6))
    assert found.p == pytest.approx(2 / 2**6)
    assert (found.wins, found.losses, found.effect) == (6, 0, 1.0)


def test_the_effect_is_the_difference_of_rank_sums_over_their_sum():
    b = np.array([1.0, 2.0, -3.0, 4.0])  # ranks 1 2 3 4: (1 + 2 + 4 - 3) / 10
    assert paired(np.zeros(4), b, 1, Bootstrap(4)).effect == pytest.approx(0.4)


def test_the_interval_of_a_difference_is_that_of_b_minus_a():
    # b is 1 less in 4 of 8 cases, else equal: mean -0.5, ends as for a column of four -1 and four 0.
    found = paired(np.full(8, 3.0), np.array([2.0, 2, 2, 2, 3, 3, 3, 3]), 1, Bootstrap(8))
    assert found.difference == Interval(mean=-0.5, low=-0.875, high=-0.125, cases=8)
    assert (found.wins, found.losses, found.effect) == (0, 4, -1.0)
    assert found.p == pytest.approx(2 / 2**4)  # four differences, all of one sign


def test_differences_below_the_sixth_decimal_are_ties():
    # 4e-7 rounds to 0, 6e-7 to 1e-6.
    found = paired(np.zeros(3), np.array([4e-7, 6e-7, -1.0]), 1, Bootstrap(3))
    assert (found.cases, found.wins, found.losses) == (3, 1, 1)


def test_less_is_better_where_the_metric_says_so():
    found = paired(np.full(5, 9.0), np.array([1.0, 2.0, 3.0, 4.0, 5.0]), -1, Bootstrap(5))
    assert (found.wins, found.effect) == (5, 1.0)
    assert found.difference.mean == pytest.approx(-6)


def test_equal_differences_are_ties_whatever_floating_point_makes_of_them():
    a = np.arange(10) / 10
    b = a + np.where(np.arange(10) == 3, -0.1, 0.1)
    assert len(set((b - a).tolist())) > 2  # 0.1 and -0.1 and their neighbours
    found = paired(a, b, 1, Bootstrap(10))
    expected = stats.wilcoxon(np.where(np.arange(10) == 3, -1.0, 1.0))
    assert (found.p, found.effect) == pytest.approx((expected.pvalue, 0.8))


def test_equal_runs_do_not_differ():
    values = np.random.default_rng(0).random(9)
    found = paired(values, values, 1, Bootstrap(9))
    assert (found.p, found.effect, found.wins, found.losses) == (1.0, 0.0, 0, 0)


def test_cases_that_one_run_lacks_are_left_out():
    a, b = np.array([1.0, np.nan, 1.0]), np.array([2.0, 2.0, np.nan])
    assert paired(a, b, 1, Bootstrap(3)).cases == 1


def test_p_values_of_equal_runs_are_small_as_often_as_they_should():
    rng = np.random.default_rng(0)
    bootstrap = Bootstrap(20)
    p = [paired(rng.random(20), rng.random(20), 1, bootstrap).p for _ in range(300)]
    assert np.mean(np.array(p) < 0.05) < 0.09


# Holm


def test_holm_never_exceeds_one():
    # sorted 0.5 0.6: times 2 is 1.0, times 1 is 0.6, which may not fall below 1.0
    assert holm(np.array([0.6, 0.5])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.9, 0.8, 0.7])).tolist() == [1.0, 1.0, 1.0]


def test_holm_by_hand():
    # sorted 0.01 0.03 0.04: times 3, 2, 1, never falling
    assert holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])


@given(hnp.arrays(float, st.integers(1, 30), elements=st.floats(0, 1)))
def test_holm_lies_between_the_raw_value_and_bonferronis(p):
    adjusted = holm(p)
    assert (adjusted >= p - 1e-12).all()
    assert (adjusted <= np.minimum(p * len(p), 1) + 1e-12).all()


@given(hnp.arrays(float, st.integers(1, 30), elements=st.floats(0, 1)))
def test_holm_keeps_the_order(p):
    assert (np.diff(holm(p)[np.argsort(p, kind="stable")]) >= -1e-12).all()


# The value of sequences


def test_shapley_is_the_mean_over_all_orders_of_arrival():
    values = table(np.random.default_rng(0))
    expected = {modality: np.zeros(5) for modality in Modality}
    for order in itertools.permutations(Modality):
        present = NOTHING
        for modality in order:
            expected[modality] += (values[present | modality] - values[present]) / 24
            present |= modality
    found = shapley(values)
    for modality in Modality:
        assert found[modality] == pytest.approx(expected[modality])


def test_the_shapley_value_of_a_sequence_that_needs_another():
    # T1c is worth something beside FLAIR alone: present after FLAIR in half of all orders, so each has half of it.
    values = {s: np.array([float((Modality.T1C | Modality.FLAIR) in s)]) for s in (NOTHING, *SUBSETS)}
    found = {m: share.tolist() for m, share in shapley(values).items()}
    expected = {Modality.T1: [0.0], Modality.T1C: [0.5], Modality.T2: [0.0], Modality.FLAIR: [0.5]}
    assert {m: pytest.approx(share) for m, share in expected.items()} == found


def test_shapley_values_sum_to_what_all_add_to_nothing():
    values = table(np.random.default_rng(1))
    assert sum(shapley(values).values()) == pytest.approx(values[ALL] - values[NOTHING])


def test_a_sequence_that_changes_nothing_is_worth_nothing():
    values = table(np.random.default_rng(2))
    for subset in (NOTHING, *SUBSETS):
        values[subset] = values[subset & ~Modality.T1]
    assert shapley(values)[Modality.T1] == pytest.approx(0)


def test_there_are_28_ways_to_add_a_sequence_to_a_subset():
    found = additions(SUBSETS)
    assert len(found) == 28  # each of 4 sequences to each of the 7 non-empty subsets of the other 3
    assert all(added not in subset for subset, added in found)


def test_additions_are_those_whose_both_ends_are_there():
    t1, t1c, t2 = Modality.T1, Modality.T1C, Modality.T2
    # T2 to T1 would make T1 + T2, which is not there.
    assert additions([t1, t2, t1 | t1c, t1c | t2]) == [(t1, t1c), (t2, t1c)]
