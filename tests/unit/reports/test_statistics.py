"""Statistics against scipy, brute force and the textbooks' figures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hpo_reports.analysis.statistics import (
    EXACT_PAIRS,
    expected_largest,
    expected_optimism,
    holm,
    least_p,
    min_detectable_difference,
    paired_interval,
    pairs_needed,
    pooled_deviation,
    probability_best,
    shrink,
    sign_flip_p,
)

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize("pairs", [2, 3, 6, 7, 10])
def test_the_sign_flip_test_is_scipys_permutation_test_of_pairs(pairs: int) -> None:
    for shift in (0.0, 0.5, 3.0):
        differences = RANDOM.normal(shift, 1.0, pairs)
        reference = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert sign_flip_p(differences) == pytest.approx(reference.pvalue, abs=1e-12)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_the_sign_flip_test_counts_all_patterns_ties_and_zeros_included(values: list[int]) -> None:
    patterns = list(itertools.product((-1, 1), repeat=len(values)))
    as_far = sum(abs(sum(s * v for s, v in zip(p, values, strict=True))) >= abs(sum(values)) for p in patterns)
    assert sign_flip_p([value / 7 for value in values]) == as_far / len(patterns)


def test_many_pairs_are_tested_by_random_patterns_and_never_give_a_p_of_zero() -> None:
    differences = RANDOM.normal(0.4, 1.0, EXACT_PAIRS + 8)
    reference = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=200_000, rng=1, vectorized=True
    )
    assert sign_flip_p(differences) == pytest.approx(reference.pvalue, rel=0.1)
    assert 0 < sign_flip_p(np.full(100, 1.0)) < 1e-4


def test_few_pairs_cannot_give_a_small_p() -> None:
    assert [least_p(pairs) for pairs in (1, 3, 6, 7)] == [1.0, 0.25, 0.03125, 0.015625]
    for pairs in (1, 3, 6, 7):
        assert sign_flip_p(RANDOM.uniform(0.1, 1.0, pairs)) == least_p(pairs)
    assert [pairs_needed(hypotheses) for hypotheses in (1, 2, 3, 4)] == [6, 7, 7, 8]


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_number_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        sign_flip_p(values)


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values: list[float]) -> None:
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = set()
    for rank, place in enumerate(order):
        if p_values[place] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(place)
    assert {place for place, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def test_the_interval_is_students() -> None:
    differences = RANDOM.normal(0.1, 1.0, 7)
    reference = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    interval = paired_interval(differences)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high))
    assert (interval.low <= 0.0 <= interval.high) == (stats.ttest_1samp(differences, 0.0).pvalue > 0.05)
    assert paired_interval([0.3]) is None


@pytest.mark.parametrize("pairs", [3, 6, 7])
def test_the_interval_covers_what_it_promises(pairs: int) -> None:
    samples = np.random.default_rng(3).normal(0.2, 1.0, (2000, pairs))
    intervals = [paired_interval(sample) for sample in samples]
    covered = sum(each is not None and each.low <= 0.2 <= each.high for each in intervals)
    assert covered / len(samples) == pytest.approx(0.95, abs=0.015)


def test_of_two_candidates_the_probability_is_that_of_a_paired_t_test() -> None:
    losses = RANDOM.normal(0.0, 1.0, (2, 6)) + RANDOM.normal(0.0, 5.0, 6)
    first, second = probability_best(losses) or (math.nan, math.nan)
    test = stats.ttest_rel(losses[0], losses[1], alternative="greater")
    assert first == pytest.approx(test.pvalue, abs=0.015)
    assert first + second == pytest.approx(1.0)


def test_probabilities_of_the_best_add_up_and_follow_the_losses() -> None:
    losses = [[3.0, 3.1, 3.05], [4.0, 4.1, 4.05], [3.0, 3.1, 3.05]]
    first, second, third = probability_best(losses) or (0.0, 0.0, 0.0)
    assert second == 0.0
    assert (first, third) == (0.5, 0.5), "equal candidates share"
    assert probability_best([[3.0], [4.0]]) is None
    assert probability_best([[3.0, 3.1]]) == [1.0]


def test_scores_whose_spread_is_noise_shrink_to_their_mean() -> None:
    scores = [3.0, 3.2, 3.4]
    assert shrink(scores, 1.0).scores == pytest.approx([3.2, 3.2, 3.2])
    assert shrink(scores, 0.0).scores == pytest.approx(scores)
    half = shrink(scores, 0.02)  # their variance is 0.04
    assert half.kept == pytest.approx(0.5)
    assert half.scores == pytest.approx([3.1, 3.2, 3.3])
    assert shrink([3.0], 0.1).scores == pytest.approx([3.0])


def test_shrunk_scores_are_nearer_to_the_truth_than_the_scores() -> None:
    random = np.random.default_rng(6)
    errors = np.zeros(2)
    for _ in range(300):
        truth = random.normal(4.0, 0.05, 8)
        scores = truth + random.normal(0.0, 0.06, 8)
        errors += [np.sum((scores - truth) ** 2), np.sum((shrink(scores, 0.06**2).scores - truth) ** 2)]
    assert errors[1] < 0.75 * errors[0]


def test_the_best_of_many_equal_ones_looks_better_than_it_is() -> None:
    assert [round(expected_largest(draws), 2) for draws in (1, 2, 5, 10, 20)] == [0.0, 0.56, 1.16, 1.54, 1.87]
    assert expected_optimism(10, 0.06) == pytest.approx(1.5388 * 0.06, rel=1e-3)
    assert expected_optimism(10, 0.0) == 0.0


def test_optimism_is_less_where_the_configurations_differ() -> None:
    random = np.random.default_rng(7)
    truth = random.normal(0.0, 0.08, (20_000, 10))
    seen = truth + random.normal(0.0, 0.06, truth.shape)
    best = seen.argmin(axis=1)[:, None]
    simulated = float(np.mean(np.take_along_axis(truth - seen, best, axis=1)))
    assert expected_optimism(10, 0.06, 0.08) == pytest.approx(simulated, rel=0.02)


def test_noise_is_pooled_within_groups() -> None:
    groups = [[1.0, 1.2, 1.4], [5.0, 5.2], [9.0]]
    pooled = pooled_deviation(groups)
    assert pooled is not None
    assert pooled[0] == pytest.approx(math.sqrt((0.08 + 0.02) / 3))
    assert pooled[1] == 3
    assert pooled_deviation([[1.0], []]) is None


def test_two_single_runs_are_told_apart_by_chance_one_time_in_twenty() -> None:
    random = np.random.default_rng(8)
    apart = 0
    for _ in range(4000):
        pooled = pooled_deviation(list(random.normal(0.0, 0.06, (2, 6))))
        assert pooled is not None
        first, second = random.normal(0.0, 0.06, 2)
        apart += abs(first - second) > min_detectable_difference(*pooled)
    assert apart / 4000 == pytest.approx(0.05, abs=0.012)
