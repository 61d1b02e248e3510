# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
""""""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from scripts.core.record import BagResult, Classes, Lesions, PatchCoordinates
from scripts.metrics.figures import Cases, bootstrap
from scripts.metrics.summary import class_metrics, cohort_metrics
from tests.shared_data import shared_data

pytestmark = pytest.mark.filterwarnings("error")  # a figure that is not defined is no reason to warn


def bag(
    probability: float,
    label: int | None,
    scores: list[float],
    truth: list[int] | None,
    attention: list[float] | None = None,
    slots: int | None = None,
) -> BagResult:
    n = len(scores)
    return BagResult(
        f"bag {probability}", "", probability, 0.5, np.array(scores), np.array(attention or [1 / n] * n), [{}] * n,
        label, None if truth is None else np.array(truth), slots=slots,
    )  # fmt: skip


COHORT = [
    bag(0.9, 1, [5.0, 1.0], [1, 0], [0.8, 0.2]),
    bag(0.2, 1, [4.0, 0.0], [1, 0], [0.9, 0.1]),
    bag(0.3, 0, [6.0, 3.0], [0, 0], [0.7, 0.3]),
    bag(0.1, 0, [2.0, 2.5], [0, 0], [0.4, 0.6]),
]


def values(results: list[BagResult]) -> dict[str, float]:
    return {name: figure.value for name, figure in cohort_metrics(results).items()}


def test_every_figure_by_hand() -> None:
    assert values(COHORT) == pytest.approx(
        {
            "bag_auroc": 3 / 4,  # .9 beats both negatives, .2 beats .1 but not .3
            "bag_accuracy": 3 / 4,
            "bag_precision": 1,
            "bag_recall": 1 / 2,
            "bag_specificity": 1,
            "bag_f1": 2 / 3,
            "bag_brier_score": (0.01 + 0.64 + 0.09 + 0.01) / 4,
            "bag_calibration_error": (0.1 + 0.8 + 0.3 + 0.1) / 4,  # each in a bin of its own
            "instance_auroc_gated": (6 + 5 / 2) / 12,  # 5 beats six; 4, in a bag called negative, ties with five
            "instance_auroc_ungated": 10 / 12,  # 5 and 4 lose to 6 alone
            "instance_auroc_weighted": (6 + 9 / 2)
            / 12,  # .8 × .9 beats six; .9 × .2 ties with .2 × .9 and loses to .7 × .3
            "instance_accuracy": 7 / 8,  # one flagged, rightly; one missed in a bag called negative
            "instance_precision": 1,
            "instance_recall": 1 / 2,
            "instance_specificity": 1,
            "instance_f1": 2 / 3,
        }
    )


Drawn = st.lists(
    st.tuples(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=4), st.integers(0, 3)),
    min_size=1,
    max_size=8,
).filter(lambda bags: any(times for _, times in bags))


@given(Drawn)
def test_a_bag_drawn_again_counts_again_and_all_is_scikit_learns(bags: list[tuple[list[tuple[int, int]], int]]) -> None:
    """Truth and score of the cases of each bag, and how often it is drawn: against a cohort written out."""
    cases, weight = (
        Cases([np.array([truth for truth, _ in of_bag]) for of_bag, _ in bags]),
        np.array([w for _, w in bags]),
    )
    score = np.array([score for of_bag, _ in bags for _, score in of_bag])
    truth, drawn = np.array([case for of_bag, times in bags for case in of_bag * times]).T
    got = {"auroc": cases.auroc(score), **cases.agreement(score > 2), **cases.calibration(score / 5)}
    assert {name: figure(weight) for name, figure in got.items()} == pytest.approx(
        {
            "auroc": roc_auc_score(truth, drawn) if len(set(truth)) == 2 else np.nan,
            **calls_by_scikit_learn(truth, drawn > 2),
            **calibration_by_scikit_learn(truth, drawn / 5),
        },
        nan_ok=True,
    )


def calls_by_scikit_learn(truth: np.ndarray, called: np.ndarray) -> dict[str, float]:
    undefined = {"zero_division": np.nan}
    return {
        "accuracy": accuracy_score(truth, called),
        "precision": precision_score(truth, called, **undefined),
        "recall": recall_score(truth, called, **undefined),
        "specificity": recall_score(truth, called, pos_label=0, **undefined),
        "f1": f1_score(truth, called, **undefined),
    }


def calibration_by_scikit_learn(truth: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    positive, predicted = calibration_curve(truth, probability, n_bins=10)
    share = np.histogram(-probability, -np.linspace(0, 1, 11)[::-1])[0][::-1] / len(truth)  # bins closed above
    return {
        "brier_score": brier_score_loss(truth, probability, pos_label=1),
        "calibration_error": float(np.abs(positive - predicted) @ share[share > 0]),
    }


def random_cohort(bags: int, seed: int = 0) -> list[BagResult]:
    generator = np.random.default_rng(seed)
    results = []
    for _ in range(bags):
        n, label = int(generator.integers(20, 50)), int(generator.integers(2))
        truth = label * generator.integers(0, 2, n)
        scores = generator.normal(truth, 1).round(1)
        weights = np.exp(scores)
        probability = float(generator.beta(2 + label, 3 - label))
        results.append(bag(probability, label, list(scores), list(truth), list(weights / weights.sum()), slots=57))
    return results


def test_a_cohort_of_usual_size_is_scikit_learns_and_takes_no_time() -> None:
    cohort = random_cohort(150)
    before = time.process_time()
    got = cohort_metrics(cohort)
    assert time.process_time() - before < 2
    label, probability = (np.array([getattr(r, name) for r in cohort]) for name in ("label", "probability"))
    truth, scores = (np.concatenate([getattr(r, name) for r in cohort]) for name in ("truth", "scores"))
    of_bag = np.repeat(probability, [len(r.scores) for r in cohort])
    attention = np.concatenate([r.attention for r in cohort])
    calls = calls_by_scikit_learn(truth, (of_bag > 0.5) & (attention > 1 / 57))
    wanted = {
        "bag_auroc": roc_auc_score(label, probability),
        **{f"bag_{name}": value for name, value in calls_by_scikit_learn(label, probability > 0.5).items()},
        **{f"bag_{name}": value for name, value in calibration_by_scikit_learn(label, probability).items()},
        "instance_auroc_gated": roc_auc_score(truth, np.where(of_bag > 0.5, scores, -100)),
        "instance_auroc_ungated": roc_auc_score(truth, scores),
        "instance_auroc_weighted": roc_auc_score(truth, attention * of_bag),
        **{f"instance_{name}": value for name, value in calls.items()},
    }
    assert {name: figure.value for name, figure in got.items()} == pytest.approx(wanted)
    for name, figure in got.items():
        assert figure.low < figure.high, name
        if name != "bag_calibration_error":  # chance alone sets bins apart: of a draw it is larger
            assert figure.low < figure.value < figure.high, name


RELEASED = {
    "att_baseline": (0.9309, 0.8533, 0.8676, 0.8194, 0.8429, 0.8383, 0.4812, 0.6824, 0.5644, 0.8838),
    "att_0_5": (0.8494, 0.8533, 0.9310, 0.7500, 0.8308, 0.8839, 0.6276, 0.5980, 0.6125, 0.8525),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_predictions_of_sa_dmil_give_the_known_figures(name: str) -> None:
    """150 scans of RSNA, flagged by the rule of the released code: more attention than 1/57."""
    cohort = released_results(name)
    assert (len(cohort), sum(len(r.instances) for r in cohort)) == (150, 5252)
    got = values(cohort)
    calls = ("accuracy", "precision", "recall", "f1")
    names = ["bag_auroc", *(f"bag_{c}" for c in calls), *(f"instance_{c}" for c in calls), "instance_auroc_weighted"]
    assert [got[each] for each in names] == pytest.approx(list(RELEASED[name]), abs=1e-4)


def released_results(name: str) -> list[BagResult]:
    """Slices of the released table that have a label; the rest is padding to 57."""
    with shared_data("sa_mil/tables/testing_example.csv").open() as file:
        labelled = {row["instance_name"]: row for row in csv.DictReader(file)}
    scans: dict[str, list[dict[str, str]]] = {}
    with shared_data(f"sa_mil/tables/{name}.csv").open() as file:
        for row in csv.DictReader(file):
            if row["instance_name"] in labelled:
                scans.setdefault(row["bag_name"], []).append({**labelled[row["instance_name"]], **row})
    results = []
    for slices in scans.values():
        attention = [float(row["cnn_prediction"]) for row in slices]
        truth = [int(row["instance_label"]) for row in slices]
        probability, label = float(slices[0]["bag_cnn_probability"]), int(slices[0]["bag_label"])
        results.append(bag(probability, label, list(np.log(attention)), truth, attention, slots=57))
    return results


def test_a_figure_that_is_not_defined_is_nan() -> None:
    negative = cohort_metrics([bag(0.2, 0, [1.0, 2.0], [0, 0]), bag(0.1, 0, [1.0], [0])])
    undefined = {name for name, figure in negative.items() if np.isnan(figure.value)}
    assert undefined == {
        "bag_auroc", "bag_precision", "bag_recall", "bag_f1", "instance_auroc_gated", "instance_auroc_ungated",
        "instance_auroc_weighted", "instance_precision", "instance_recall", "instance_f1",
    }  # fmt: skip
    assert all(np.isnan(negative[name]).all() for name in undefined)
    assert negative["instance_specificity"] == (1, 1, 1)


def test_draws_without_a_figure_do_not_count() -> None:
    """A draw of these four lacks the positive bag one time in three: it has no recall, and a precision of 0."""
    figures = cohort_metrics([COHORT[0], *[bag(0.6, 0, [1.0], None)] * 3])
    assert figures["bag_recall"] == (1, 1, 1)
    assert figures["bag_precision"].low == 0


def test_a_network_that_answers_nan_has_no_ranking() -> None:
    broken = values([*COHORT, bag(np.nan, 1, [np.nan, np.nan], [1, 0], [np.nan, np.nan])])
    undefined = {name for name, value in broken.items() if np.isnan(value)}
    assert undefined == {
        "bag_auroc", "bag_brier_score", "bag_calibration_error", "instance_auroc_gated", "instance_auroc_ungated",
        "instance_auroc_weighted",
    }  # fmt: skip
    assert broken["bag_recall"] == 1 / 3


def test_one_bag_of_one_instance() -> None:
    got = values([bag(0.75, 1, [1.0], [1])])
    assert {name for name, value in got.items() if np.isnan(value)} == {
        "bag_auroc", "bag_specificity", "instance_auroc_gated", "instance_auroc_ungated", "instance_auroc_weighted",
        "instance_specificity",
    }  # fmt: skip
    assert got["instance_f1"] == got["bag_f1"] == 1
    assert got["bag_calibration_error"] == 0.25


def test_what_is_not_known_has_no_figures() -> None:
    of_bags = {name for name in values(COHORT) if name.startswith("bag_")}
    assert set(values([bag(0.2, 1, [0.0], None), bag(0.1, 0, [0.0], None)])) == of_bags
    assert cohort_metrics([bag(0.2, None, [0.0], None)]) == cohort_metrics([]) == {}
    some = values([*COHORT, bag(0.95, 1, [9.0], None), bag(0.95, None, [9.0], [0])])
    assert some["bag_accuracy"] == 4 / 5
    of_instances = {name: value for name, value in values(COHORT).items() if name.startswith("instance_")}
    assert some.items() >= of_instances.items()  # a bag without truth, or without label, changes nothing of them


def test_a_negative_bag_needs_no_annotation() -> None:
    told, untold = (bag(0.95, 0, [9.0, 1.0], truth, [0.9, 0.1]) for truth in ([0, 0], None))
    assert values([*COHORT, untold]) == values([*COHORT, told])
    assert values([*COHORT, told])["instance_specificity"] < values(COHORT)["instance_specificity"]
    assert not any(name.startswith("instance_") for name in values([untold, untold]))


def mean_of(numbers: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda weights: float(np.average(numbers, weights=weights))


def test_the_interval_of_a_known_distribution_covers_it() -> None:
    """The 95 % interval of the mean of 400 draws is about ±1.96 σ/√n."""
    numbers = np.random.default_rng(0).normal(0.5, 0.1, 400)
    got = bootstrap(400, {"mean": mean_of(numbers)})["mean"]
    assert got.value == pytest.approx(numbers.mean())
    assert got.low < 0.5 < got.high
    assert got.high - got.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)


def test_more_slices_of_the_same_scans_make_no_interval_narrower() -> None:
    cohort = random_cohort(30)
    doubled = [bag(r.probability, r.label, [*r.scores] * 2, [*r.truth] * 2) for r in cohort if r.truth is not None]
    once, twice = (cohort_metrics(results)["instance_auroc_ungated"] for results in (cohort, doubled))
    assert once == pytest.approx(twice)
    assert once == cohort_metrics(cohort)["instance_auroc_ungated"]


def test_a_negative_slide_needs_no_annotation_for_the_lesions_either() -> None:
    """Its patches are false alarms all the same."""
    header = {"slides": [{"pitch": 1.0}]}

    def slide(label: int, lesions: Lesions | None, *scores: float) -> BagResult:
        places = PatchCoordinates(
            np.stack([3.0 * np.arange(len(scores)), np.zeros(len(scores))], axis=1), np.zeros(len(scores))
        )
        plain = bag(0.9, label, list(scores), None)
        return replace(plain, instances=places, lesions=lesions, about=header)

    found = slide(1, Lesions(np.array([1, 0]), 1), 5.0, 1.0)
    told, untold = (slide(0, none, 9.0, 8.0, 7.0, 6.0) for none in (Lesions(np.zeros(4, dtype=int), 0), None))
    froc = {name: value for name, value in values([found, untold]).items() if "froc" in name}
    assert froc == {name: value for name, value in values([found, told]).items() if "froc" in name}
    assert 0 < froc["lesion_froc_ungated"] < values([found])["lesion_froc_ungated"] == 1
    assert not any("froc" in name for name in values([untold]))


NAMES = ("N", "UDH", "FEA", "DCIS")
GROUPS = ("benign", "benign", "atypical", "malignant")


def of_classes(probabilities: np.ndarray, label: int | None, names: tuple[str, ...] = NAMES, negative: str | None = "N",
        groups: tuple[str, ...] = ()) -> BagResult:  # fmt: skip
    return BagResult(
        bag_id="slide",
        source="slide.h5",
        probability=1 - float(probabilities[names.index(negative)]) if negative else float(probabilities.max()),
        threshold=0.5,
        scores=np.zeros(1),
        attention=np.ones(1),
        instances=[{"id": 0}],
        label=label,
        classes=Classes(names, probabilities, groups, negative),
    )


def drawn(seed: int, bags: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), bags)
    return probabilities, np.concatenate([np.arange(classes), rng.integers(classes, size=bags - classes)])


@pytest.mark.parametrize(("seed", "bags"), [(0, 4), (1, 9), (2, 30), (3, 200)])
def test_all_is_scikit_learns(seed: int, bags: int) -> None:
    probabilities, label = drawn(seed, bags, 4)
    called = probabilities.argmax(axis=1)
    got = class_metrics([of_classes(p, int(k)) for p, k in zip(probabilities, label, strict=True)])
    assert {name: figure.value for name, figure in got.items()} == pytest.approx(
        {
            "class_accuracy": accuracy_score(label, called),
            "class_balanced_accuracy": balanced_accuracy_score(label, called),
            "class_f1_macro": f1_score(label, called, average="macro"),
            "class_auroc_macro": roc_auc_score(label, probabilities, multi_class="ovr", average="macro"),
        }
    )


def test_grades_are_ordered() -> None:
    probabilities, label = drawn(1, 25, 4)
    grades = tuple("0123")
    got = class_metrics([of_classes(p, int(k), grades, "0") for p, k in zip(probabilities, label, strict=True)])
    wanted = cohen_kappa_score(label, probabilities.argmax(axis=1), weights="quadratic")
    assert got["class_kappa_quadratic"].value == pytest.approx(wanted)
    assert got["class_kappa_quadratic"].low < wanted < got["class_kappa_quadratic"].high


def test_coarse_classes_have_the_sum_of_their_fine_ones() -> None:
    probabilities, label = drawn(2, 30, 4)
    got = class_metrics([of_classes(p, int(k), groups=GROUPS) for p, k in zip(probabilities, label, strict=True)])
    coarse = np.stack([probabilities[:, :2].sum(axis=1), probabilities[:, 2], probabilities[:, 3]], axis=1)
    truth = np.array([0, 0, 1, 2])[label]
    assert got["coarse_accuracy"].value == pytest.approx(accuracy_score(truth, coarse.argmax(axis=1)))
    assert got["coarse_auroc_macro"].value == pytest.approx(roc_auc_score(truth, coarse, multi_class="ovr"))


def test_a_finding_at_all_is_judged_where_a_class_has_none() -> None:
    probabilities, label = drawn(3, 20, 4)
    got = cohort_metrics([of_classes(p, int(k)) for p, k in zip(probabilities, label, strict=True)])
    assert got["bag_auroc"].value == pytest.approx(roc_auc_score(label > 0, 1 - probabilities[:, 0]))
    assert got["bag_accuracy"].value == pytest.approx(((probabilities.argmax(axis=1) > 0) == (label > 0)).mean())
    every_one = cohort_metrics(
        [of_classes(p, int(k), negative=None) for p, k in zip(probabilities, label, strict=True)]
    )
    assert not any(name.startswith("bag_") for name in every_one)
    assert every_one["class_accuracy"] == got["class_accuracy"]


def test_a_class_that_nobody_has_is_left_out_of_the_mean() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    got = class_metrics([of_classes(p, k, ("a", "b", "c"), "a") for p, k in zip(probabilities, (0, 1, 1), strict=True)])
    assert got["class_balanced_accuracy"].value == pytest.approx((1 + 1 / 2) / 2)
    assert got["class_auroc_macro"].value == 1


def test_a_network_of_one_logit_has_no_figures_of_classes() -> None:
    plain = of_classes(np.array([0.3, 0.7]), 1, ("no", "yes"), "no")
    assert class_metrics([]) == {}
    assert class_metrics([BagResult(**{**vars(plain), "classes": None})]) == {}
