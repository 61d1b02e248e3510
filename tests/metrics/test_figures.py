# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Figures against scikit-learn on a cohort written out, and intervals against a known distribution."""

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from scripts.metrics.figures import Cases, bootstrap, class_figures, quadratic_kappa

pytestmark = pytest.mark.filterwarnings("error")  # an undefined figure is no reason to warn

Drawn = st.lists(
    st.tuples(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=4), st.integers(0, 3)),
    min_size=1,
    max_size=8,
).filter(lambda bags: any(times for _, times in bags))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(Drawn)
def test_a_bag_drawn_again_counts_again_and_all_is_scikit_learns(bags: list[tuple[list[tuple[int, int]], int]]) -> None:
    """Truth and score of the cases of each bag, and how often it is drawn: against a cohort written out."""
    cases = Cases([np.array([truth for truth, _ in of_bag]) for of_bag, _ in bags])
    weight = np.array([times for _, times in bags])
    score = np.array([score for of_bag, _ in bags for _, score in of_bag])
    truth, drawn = np.array([case for of_bag, times in bags for case in of_bag * times]).T
    got = {"auroc": cases.auroc(score), **cases.curves(score)}
    got |= {**cases.agreement(score > 2), **cases.calibration(score / 5), "separation": cases.separation(score + 1e4)}
    called, probability, undefined = drawn > 2, drawn / 5, {"zero_division": np.nan}
    share_positive, predicted = calibration_curve(truth, probability, n_bins=10)
    share = np.histogram(-probability, -np.linspace(0, 1, 11)[::-1])[0][::-1] / len(truth)  # bins closed above
    both = len(set(truth)) == 2
    alarms, hits, _ = sk.roc_curve(truth, drawn, drop_intermediate=False) if both else np.full((3, 1), np.nan)
    kinds, within = (drawn[truth == 1], drawn[truth == 0]), np.nan
    if both and len(drawn) > 2:
        within = np.sqrt(sum(((kind - kind.mean()) ** 2).sum() for kind in kinds) / (len(drawn) - 2)) or np.nan
    wanted = {
        "separation": (kinds[0].mean() - kinds[1].mean()) / within if both else np.nan,
        "auroc": sk.roc_auc_score(truth, drawn) if both else np.nan,
        "average_precision": sk.average_precision_score(truth, drawn) if truth.any() else np.nan,
        "sensitivity_at_specificity_0.9": hits[alarms <= 0.1 + 1e-9].max() if both else np.nan,
        "specificity_at_sensitivity_0.9": 1 - alarms[hits >= 0.9 - 1e-9].min() if both else np.nan,
        "balanced_accuracy": sk.balanced_accuracy_score(truth, called) if both else np.nan,
        "accuracy": sk.accuracy_score(truth, called),
        "precision": sk.precision_score(truth, called, **undefined),
        "recall": sk.recall_score(truth, called, **undefined),
        "specificity": sk.recall_score(truth, called, pos_label=0, **undefined),
        "f1": sk.f1_score(truth, called, **undefined),
        "brier_score": sk.brier_score_loss(truth, probability, pos_label=1),
        "calibration_error": float(np.abs(share_positive - predicted) @ share[share > 0]),
    }
    assert {name: figure(weight) for name, figure in got.items()} == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("bags", [4, 200])
def test_figures_of_classes_are_scikit_learns(bags: int) -> None:
    rng = np.random.default_rng(bags)
    probabilities = rng.dirichlet(np.ones(4), bags)
    label, called = np.concatenate([np.arange(4), rng.integers(4, size=bags - 4)]), probabilities.argmax(axis=1)
    figures = {**class_figures(label, probabilities), "kappa": quadratic_kappa(label, called, 4)}
    assert {name: figure(np.ones(bags)) for name, figure in figures.items()} == pytest.approx(
        {
            "accuracy": sk.accuracy_score(label, called),
            "balanced_accuracy": sk.balanced_accuracy_score(label, called),
            "f1_macro": sk.f1_score(label, called, average="macro"),
            "auroc_macro": sk.roc_auc_score(label, probabilities, multi_class="ovr", average="macro"),
            "kappa": sk.cohen_kappa_score(label, called, weights="quadratic"),
        }
    )


def test_a_class_that_no_bag_has_is_left_out_of_the_mean() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    got = class_figures(np.array([0, 1, 1]), probabilities)
    assert got["balanced_accuracy"](np.ones(3)) == pytest.approx((1 + 1 / 2) / 2)
    assert got["auroc_macro"](np.ones(3)) == 1


def test_draws_that_do_not_vary_give_no_interval() -> None:
    perfect, score = Cases([np.array([0]), np.array([1])] * 10), np.tile([0.1, 0.9], 10)
    found = bootstrap(20, {"auroc": perfect.auroc(score), **perfect.curves(score), **perfect.calibration(score)}, 50)
    assert found["auroc"].value == found["average_precision"].value == 1
    assert all(np.isnan(ends).all() for _, *ends in found.values())


def test_the_interval_of_a_known_distribution_covers_it() -> None:
    """The 95 % interval of the mean of 400 draws is about ±1.96 σ/√n."""
    numbers = np.random.default_rng(0).normal(0.5, 0.1, 400)
    got = bootstrap(400, {"mean": lambda weight: float(np.average(numbers, weights=weight))})["mean"]
    assert got.value == pytest.approx(numbers.mean())
    assert got.low < 0.5 < got.high
    assert got.high - got.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
