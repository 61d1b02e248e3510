# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Intervals cover what they should, also in small cohorts, against scipy and scikit-learn where these have them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from benchmarks.coverage import cases as covers
from benchmarks.coverage import share_of, two_normals
from scripts.metrics.intervals import auroc, auroc_difference, mean_proportion, wilson

COVERS = covers()


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(counts: tuple[int, int]) -> None:
    ours = wilson(*counts)
    theirs = binomtest(*counts).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("case", COVERS)
def test_what_they_are_of_is_covered_in_93_to_97_of_100_cohorts(case: str) -> None:
    assert 0.93 <= share_of(COVERS[case], draws=1000) <= 0.97


def test_the_mean_of_two_proportions_is_newcombes_difference_of_one_and_the_others_rest() -> None:
    """Example (a) of his paper of 1998: 56/70 less 48/80 is 0.2 [0.0524, 0.3339]; p + q - 1 is p less 1 - q."""
    p, q = wilson(56, 70), wilson(32, 80)
    turned = mean_proportion([p, q])
    assert [2 * each - 1 for each in turned] == pytest.approx([0.2, 0.0524, 0.3339], abs=1e-4)
    assert mean_proportion([wilson(10, 10)] * 4).low > wilson(10, 10).low > wilson(4, 4).low
    assert np.isnan(mean_proportion([p, wilson(0, 0)])).all()


def by_delongs_formula(truth: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The difference and its standard error, with every pair of bags written out as in the paper of 1988."""
    positives, negatives = np.flatnonzero(truth), np.flatnonzero(1 - truth)
    wins = np.array([[[np.sign(s[i] - s[j]) / 2 + 0.5 for j in negatives] for i in positives] for s in (one, other)])
    of_positives, of_negatives = np.cov(wins.mean(axis=2)), np.cov(wins.mean(axis=1))
    covariance = of_positives / len(positives) + of_negatives / len(negatives)
    contrast = np.array([1, -1])
    return float(contrast @ wins.mean(axis=(1, 2))), float(np.sqrt(contrast @ covariance @ contrast))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=30))
def test_the_difference_of_two_aurocs_is_tested_by_delongs_formula(cases: list[tuple[bool, int, int]]) -> None:
    truth, one, other = (np.array(column).astype(int) for column in zip(*cases, strict=True))
    (value, low, high), p = auroc_difference(truth, one, other)
    if min(truth.sum(), (1 - truth).sum()) < 2:
        assert np.isnan([low, high, p]).all()
        return
    difference, error = by_delongs_formula(truth, one, other)
    assert value == pytest.approx(difference)
    if error < 1e-6:  # but for rounding none, as of twice the same score
        assert np.isnan([low, high, p]).all()
        return
    assert (low, high) == pytest.approx(tuple(difference + norm.ppf([0.025, 0.975]) * error))
    assert p == pytest.approx(2 * norm.sf(abs(difference) / error))
    assert auroc_difference(truth, other, one)[1] == pytest.approx(p)


def test_two_scores_that_are_alike_differ_by_chance_in_5_of_100_cohorts_and_others_in_more() -> None:
    generator = np.random.default_rng(2)

    def p(skill: float) -> float:
        truth, shared = two_normals(0.85, 30, 30, generator)
        worse = shared - skill * truth
        return auroc_difference(truth, shared + generator.normal(size=60), worse + generator.normal(size=60))[1]

    assert 0.03 <= np.mean([p(0) < 0.05 for _ in range(1000)]) <= 0.07
    assert np.mean([p(1.0) < 0.05 for _ in range(100)]) > 0.5


@pytest.mark.parametrize("count", [3, 10, 100])
def test_a_cohort_without_error_is_no_certainty(count: int) -> None:
    truth = np.repeat([0, 1], count)
    value, low, high = auroc(truth, truth + 0.0)
    assert (value, high) == (1, 1)
    assert 1 - 5 / count < low < 1
    assert auroc(truth, -truth + 0.0) == pytest.approx((0, 0, 1 - low))
    assert wilson(count, count).low < 1


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=4, max_size=30))
def test_the_values_are_those_of_scikit_learn_and_lie_within(cases: list[tuple[bool, int]]) -> None:
    truth, one = (np.array(column) for column in zip(*cases, strict=True))
    if truth.all() or not truth.any():
        assert np.isnan(auroc(truth, one)).all()
        return
    value, low, high = auroc(truth, one)
    assert value == pytest.approx(roc_auc_score(truth, one))
    assert 0 <= low <= value <= high <= 1


def test_a_lone_positive_bag_says_little() -> None:
    """DeLong's variance of one case is not known, which is not 0."""
    generator = np.random.default_rng(1)
    intervals = [auroc(*two_normals(0.85, 1, 20, generator)) for _ in range(1000)]
    assert np.mean([low <= 0.85 <= high for _, low, high in intervals]) >= 0.93
