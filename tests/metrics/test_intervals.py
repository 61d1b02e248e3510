# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Intervals cover what they should, also in small cohorts, against scipy and scikit-learn where these have them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from scripts.metrics.intervals import auroc, wilson


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(counts: tuple[int, int]) -> None:
    ours = wilson(*counts)
    theirs = binomtest(*counts).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def two_normals(
    auc: float, positives: int, negatives: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores whose AUROC is `auc` in the population."""
    truth = np.repeat([1, 0], [positives, negatives])
    return truth, generator.normal(truth * np.sqrt(2) * norm.ppf(auc), 1.0)


@pytest.mark.parametrize(("auc", "positives", "negatives"), [(0.85, 12, 12), (0.85, 18, 42), (0.97, 30, 30)])
def test_an_auroc_is_covered_in_93_to_97_of_100_cohorts(auc: float, positives: int, negatives: int) -> None:
    generator = np.random.default_rng(1)
    intervals = [auroc(*two_normals(auc, positives, negatives, generator)) for _ in range(1000)]
    assert 0.93 <= np.mean([low <= auc <= high for _, low, high in intervals]) <= 0.97


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
