# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    roc_auc_score,
)

from scripts.data.results import BagResult, Classes
from scripts.metrics.classes import class_metrics
from scripts.metrics.cohort import cohort_metrics

NAMES = ("N", "UDH", "FEA", "DCIS")
GROUPS = ("benign", "benign", "atypical", "malignant")


def bag(probabilities: np.ndarray, label: int | None, names: tuple[str, ...] = NAMES, negative: str | None = "N",
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
    got = class_metrics([bag(p, int(k)) for p, k in zip(probabilities, label, strict=True)])
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
    got = class_metrics([bag(p, int(k), grades, "0") for p, k in zip(probabilities, label, strict=True)])
    wanted = cohen_kappa_score(label, probabilities.argmax(axis=1), weights="quadratic")
    assert got["class_kappa_quadratic"].value == pytest.approx(wanted)
    assert got["class_kappa_quadratic"].low < wanted < got["class_kappa_quadratic"].high


def test_coarse_classes_have_the_sum_of_their_fine_ones() -> None:
    probabilities, label = drawn(2, 30, 4)
    got = class_metrics([bag(p, int(k), groups=GROUPS) for p, k in zip(probabilities, label, strict=True)])
    coarse = np.stack([probabilities[:, :2].sum(axis=1), probabilities[:, 2], probabilities[:, 3]], axis=1)
    truth = np.array([0, 0, 1, 2])[label]
    assert got["coarse_accuracy"].value == pytest.approx(accuracy_score(truth, coarse.argmax(axis=1)))
    assert got["coarse_auroc_macro"].value == pytest.approx(roc_auc_score(truth, coarse, multi_class="ovr"))


def test_a_finding_at_all_is_judged_where_a_class_has_none() -> None:
    probabilities, label = drawn(3, 20, 4)
    got = cohort_metrics([bag(p, int(k)) for p, k in zip(probabilities, label, strict=True)])
    assert got["bag_auroc"].value == pytest.approx(roc_auc_score(label > 0, 1 - probabilities[:, 0]))
    assert got["bag_accuracy"].value == pytest.approx(((probabilities.argmax(axis=1) > 0) == (label > 0)).mean())
    every_one = cohort_metrics([bag(p, int(k), negative=None) for p, k in zip(probabilities, label, strict=True)])
    assert not any(name.startswith("bag_") for name in every_one)
    assert every_one["class_accuracy"] == got["class_accuracy"]


def test_a_class_that_nobody_has_is_left_out_of_the_mean() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    got = class_metrics([bag(p, k, ("a", "b", "c"), "a") for p, k in zip(probabilities, (0, 1, 1), strict=True)])
    assert got["class_balanced_accuracy"].value == pytest.approx((1 + 1 / 2) / 2)
    assert got["class_auroc_macro"].value == 1


def test_a_network_of_one_logit_has_no_figures_of_classes() -> None:
    plain = bag(np.array([0.3, 0.7]), 1, ("no", "yes"), "no")
    assert class_metrics([]) == {}
    assert class_metrics([BagResult(**{**vars(plain), "classes": None})]) == {}
