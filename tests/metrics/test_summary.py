# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics of a cohort: by hand, of several classes, and where nothing is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from scripts.core.lesions import Lesions
from scripts.core.record import BagResult, Classes, PatchCoordinates
from scripts.metrics.intervals import wilson
from scripts.metrics.summary import cohort_metrics

pytestmark = pytest.mark.filterwarnings("error")  # an undefined figure is no reason to warn


def bag(
    probability: float, label: int | None, scores: list[float], truth: list[int] | None, attention: Any = None
) -> BagResult:
    n, known = len(scores), None if truth is None else np.array(truth)
    weights = np.array(attention or [1 / n] * n)
    return BagResult("bag", "", probability, 0.5, np.array(scores), weights, [{}] * n, label, known)


COHORT = [
    bag(0.9, 1, [5.0, 1.0], [1, 0], [0.8, 0.2]),
    bag(0.2, 1, [4.0, 0.0], [1, 0], [0.9, 0.1]),
    bag(0.3, 0, [6.0, 3.0], [0, 0], [0.7, 0.3]),
    bag(0.1, 0, [2.0, 2.5], [0, 0], [0.4, 0.6]),
]


def values(results: list[BagResult]) -> dict[str, float]:
    return {name: figure.value for name, figure in cohort_metrics(results).items()}


def undefined(results: list[BagResult]) -> set[str]:
    return {name for name, value in values(results).items() if np.isnan(value)}


def test_every_figure_by_hand() -> None:
    assert values(COHORT) == pytest.approx(
        {
            "bag_auroc": 3 / 4,  # .9 beats both negatives, .2 beats .1 but not .3
            "bag_average_precision": (1 + 2 / 3) / 2,
            "bag_sensitivity_at_specificity_0.9": 1 / 2,
            "bag_specificity_at_sensitivity_0.9": 1 / 2,
            "bag_accuracy": 3 / 4,
            "bag_balanced_accuracy": (1 / 2 + 1) / 2,
            "bag_precision": 1,
            "bag_recall": 1 / 2,
            "bag_specificity": 1,
            "bag_f1": 2 / 3,
            "bag_brier_score": (0.01 + 0.64 + 0.09 + 0.01) / 4,
            "bag_calibration_error": (0.1 + 0.8 + 0.3 + 0.1) / 4,  # each in a bin of its own
            "instance_auroc_gated": (6 + 5 / 2) / 12,  # 5 beats six; 4, in a bag called negative, ties with five
            "instance_auroc_ungated": 10 / 12,  # 5 and 4 lose to 6 alone
            "instance_auroc_within_bags": 1,  # in each positive bag the one is above the other
            "instance_auroc_within_positive_bags": 1,  # the highest of the negative ones there is 1
            "instance_auroc_weighted": (6 + 9 / 2) / 12,  # .8 × .9 beats six; .9 × .2 ties with .2 × .9
            "instance_separation": (4.5 - 14.5 / 6) / np.sqrt((0.5 + 56.25 - 14.5**2 / 6) / 6),
            "attention_spread": (0.6 + 0.8 + 0.4 + 0.2) / 4,  # 2 × .8 and 2 × .2 lie .6 from 1
            "dirichlet_energy_of_attention": 1,  # of two instances, whatever they are
            "dirichlet_energy_of_scores": 1,
            "instance_accuracy": 7 / 8,  # one flagged, rightly; one missed in a bag called negative
            "instance_balanced_accuracy": (1 / 2 + 1) / 2,
            "instance_precision": 1,
            "instance_recall": 1 / 2,
            "instance_specificity": 1,
            "instance_f1": 2 / 3,
        }
    )


AT = {"bag_sensitivity_at_specificity_0.9", "bag_specificity_at_sensitivity_0.9"}
WITHIN = ("auroc_within_bags", "auroc_within_positive_bags")
OF_INSTANCES = ("auroc_gated", "auroc_ungated", "auroc_weighted", "separation", *WITHIN)
AUROCS = {"bag_auroc", *AT, *(f"instance_{name}" for name in OF_INSTANCES)}
ENERGIES = {"dirichlet_energy_of_attention", "dirichlet_energy_of_scores"}
BALANCED = {"bag_balanced_accuracy", "instance_balanced_accuracy"}


def test_what_is_undefined_is_nan() -> None:
    negative = [bag(0.2, 0, [1.0, 2.0], [0, 0]), bag(0.1, 0, [1.0], [0])]
    of_positives = {f"{of}_{name}" for of in ("bag", "instance") for name in ("precision", "recall", "f1")}
    assert undefined(negative) == AUROCS | BALANCED | of_positives | {"bag_average_precision"}
    assert cohort_metrics(negative)["instance_specificity"] == pytest.approx((1, np.nan, np.nan), nan_ok=True)
    one = [bag(0.75, 1, [1.0], [1])]
    of_negatives = {"bag_specificity", "instance_specificity"}
    assert undefined(one) == AUROCS | BALANCED | of_negatives | {"attention_spread"}
    assert values(one)["bag_calibration_error"] == 0.25
    broken = [*COHORT, bag(np.nan, 1, [np.nan, np.nan], [1, 0], [np.nan, np.nan])]  # the network answered NaN
    of_probability = {"bag_average_precision", "bag_brier_score", "bag_calibration_error"}
    assert undefined(broken) == AUROCS | ENERGIES | of_probability | {"attention_spread"}
    assert values(broken)["bag_recall"] == 1 / 3


def test_draws_without_a_figure_do_not_count() -> None:
    """A draw of these four lacks the positive bag one time in three: it has no recall, and a precision of 0."""
    figures = cohort_metrics([COHORT[0], *[bag(0.6, 0, [1.0], None)] * 3])
    assert (figures["instance_recall"].value, figures["instance_precision"].low) == (1, 0)
    np.testing.assert_equal(cohort_metrics(COHORT), cohort_metrics(COHORT))  # the same each time


def test_what_is_gated_called_or_flagged_is_so_by_the_threshold_in_use() -> None:
    lower, higher = (values([replace(b, threshold=t) for b in COHORT]) for t in (0.15, 0.95))
    assert lower["bag_recall"] == lower["instance_recall"] == 1
    assert (lower["bag_specificity"], lower["instance_specificity"]) == (1 / 2, 5 / 6)
    assert lower["instance_auroc_gated"] == 10 / 12  # the bag at .1 alone is gated, and none of it was ahead
    assert (higher["bag_recall"], higher["instance_recall"], higher["instance_auroc_gated"]) == (0, 0, 1 / 2)
    assert lower["instance_auroc_ungated"] == higher["instance_auroc_ungated"]


def test_every_score_that_all_bags_tell_is_judged_by_how_it_ranks_whichever_flags() -> None:
    """Attention ranks them as the score did before; the evidence is against what has most of it."""
    turned = [replace(b, attention_logits=b.scores, evidence=-b.scores, instance_logits=b.scores**0) for b in COHORT]
    by_own = [replace(b, score_name="instance", scores=b.instance_logits, flag_above=2.0) for b in turned]  # type: ignore[arg-type]
    for bags in (turned, by_own):
        found = values(bags)
        wanted = {"attention": 10 / 12, "evidence": 2 / 12, "instance": 1 / 2}
        assert {name: found[f"instance_auroc_{name}"] for name in wanted} == pytest.approx(wanted)
    assert values(turned)["instance_auroc_ungated"] == pytest.approx(10 / 12)
    assert (values(by_own)["instance_auroc_ungated"], values(by_own)["instance_recall"]) == (1 / 2, 0)
    assert "instance_auroc_evidence" not in values([*turned[:3], replace(turned[3], evidence=None)])


def test_sets_of_labels_are_judged_by_how_often_they_hold_the_label_and_how_many_they_hold() -> None:
    sets = (("positive",), ("negative",), (), ("negative", "positive"))
    figures = cohort_metrics([replace(b, label_set=s) for b, s in zip(COHORT, sets, strict=True)])
    assert figures["bag_set_coverage"] == wilson(2, 4)
    assert figures["bag_set_size"].value == 1
    assert not any(name.startswith("bag_set") for name in values(COHORT))


def test_bags_that_are_all_right_are_no_certainty() -> None:
    bags = [bag(0.9, 1, [2.0, 1.0], [1, 0])] * 10 + [bag(0.2, 0, [1.0], None)] * 10
    figures = cohort_metrics(bags)
    for name, least in (("auroc", 0.8), ("accuracy", 0.83), ("recall", 0.72), ("specificity", 0.72)):
        value, low, high = figures[f"bag_{name}"]
        assert (value, high) == (1, 1)
        assert least < low < 0.9
    assert 0.8 < figures["bag_balanced_accuracy"].low < figures["bag_accuracy"].low < 0.9
    classed = [replace(b, classes=Classes(("0", "1"), np.eye(2)[b.label or 0], ("a", "b"), "0")) for b in bags]
    for each in (figures, cohort_metrics(classed)):
        assert {name for name, (value, low, high) in each.items() if low == high} == set()  # [1, 1] is no interval
    for name in ("class", "coarse"):
        assert cohort_metrics(classed)[f"{name}_accuracy"] == wilson(20, 20)
        assert cohort_metrics(classed)[f"{name}_balanced_accuracy"] == figures["bag_balanced_accuracy"]


def test_what_is_unknown_has_no_figures() -> None:
    of_bags = {name for name in values(COHORT) if not name.startswith("instance_")}
    assert set(values([bag(0.2, 1, [0.0], None), bag(0.1, 0, [0.0], None)])) == of_bags
    assert cohort_metrics([bag(0.2, None, [0.0], None)]) == cohort_metrics([]) == {}
    some = values([*COHORT, bag(0.95, 1, [9.0], None), bag(0.95, None, [9.0], [0])])
    assert some["bag_accuracy"] == 4 / 5
    of_instances = {name: value for name, value in values(COHORT).items() if name.startswith("instance_")}
    assert some.items() >= of_instances.items()  # a bag without truth, or without label, changes nothing of them


def slide(label: int, lesions: list[int] | None, *scores: float) -> BagResult:
    """Patches far from each other."""
    patches = PatchCoordinates(np.outer(np.arange(len(scores)), [3.0, 0.0]), np.zeros(len(scores)))
    known = None if lesions is None else Lesions(np.array(lesions), max(lesions))
    of_patches = bag(0.9, label, list(scores), None)
    return replace(of_patches, instances=patches, lesions=known, about={"slides": [{"pitch": 1.0}]})


def test_a_negative_bag_needs_no_annotation() -> None:
    """Its instances are false alarms all the same; but where no bag has an annotation, nothing is known."""
    for others, known, unknown, lower in (
        (COHORT, bag(0.95, 0, [9.0], [0]), bag(0.95, 0, [9.0], None), "instance_specificity"),
        ([slide(1, [1, 0], 5, 1)], slide(0, [0, 0], 9, 8), slide(0, None, 9, 8), "lesion_froc_ungated"),
    ):
        assert values([*others, unknown]) == values([*others, known])
        assert values([*others, unknown])[lower] < values(others)[lower]
        assert {name.split("_")[0] for name in values([unknown, unknown])} == {"bag", "attention", "dirichlet"}


NAMES = ("N", "UDH", "FEA", "DCIS")
GROUPS = ("benign", "benign", "atypical", "malignant")
PROBABILITIES = np.random.default_rng(2).dirichlet(np.ones(4), 30)
LABEL = np.arange(30) % 4


def of_classes(names: Any = NAMES, negative: str | None = "N", groups: Any = GROUPS) -> list[BagResult]:
    """The negative class, where there is one, is the first."""
    return [
        replace(bag(1 - float(p[0]), int(label), [0.0], None), classes=Classes(names, p, groups, negative))
        for p, label in zip(PROBABILITIES, LABEL, strict=True)
    ]


def test_coarse_classes_have_the_sum_of_their_fine_ones() -> None:
    got = values(of_classes())
    coarse = np.stack([PROBABILITIES[:, :2].sum(axis=1), PROBABILITIES[:, 2], PROBABILITIES[:, 3]], axis=1)
    truth = np.array([0, 0, 1, 2])[LABEL]
    assert got["class_accuracy"] == pytest.approx(accuracy_score(LABEL, PROBABILITIES.argmax(axis=1)))
    assert got["coarse_accuracy"] == pytest.approx(accuracy_score(truth, coarse.argmax(axis=1)))
    assert got["coarse_auroc_macro"] == pytest.approx(roc_auc_score(truth, coarse, multi_class="ovr"))


def test_a_finding_at_all_is_judged_where_a_class_has_none() -> None:
    got, every_class_is_one = values(of_classes()), values(of_classes(negative=None, groups=()))
    assert got["bag_auroc"] == pytest.approx(roc_auc_score(LABEL > 0, 1 - PROBABILITIES[:, 0]))
    assert got["bag_accuracy"] == pytest.approx(((PROBABILITIES.argmax(axis=1) > 0) == (LABEL > 0)).mean())
    assert {name.split("_")[0] for name in every_class_is_one} == {"class", "attention", "dirichlet"}
    assert every_class_is_one["class_accuracy"] == got["class_accuracy"]


def test_grades_alone_are_ordered() -> None:
    assert "class_kappa_quadratic" in values(of_classes(("0", "1", "2", "3"), "0"))
    assert "class_kappa_quadratic" not in values(of_classes())
