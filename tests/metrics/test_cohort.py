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
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from scripts.data.results import BagResult
from scripts.metrics.cohort import Ranking, bootstrap, cohort_metrics, rank_bags, rank_instances


def bag(probability: float, label: int | None, scores: list[float], truth: list[int] | None) -> BagResult:
    n = len(scores)
    return BagResult(
        f"bag {probability}", "", probability, 0.5, np.array(scores), np.full(n, 1 / n), [{}] * n, label,
        None if truth is None else np.array(truth),
    )  # fmt: skip


COHORT = [
    bag(0.9, 1, [5.0, 1.0], [1, 0]),
    bag(0.2, 1, [4.0, 0.0], [1, 0]),
    bag(0.3, 0, [6.0, 3.0], [0, 0]),
    bag(0.1, 0, [2.0, 2.5], [0, 0]),
]


ONCE = np.ones(len(COHORT))


def test_bag_auroc_by_hand() -> None:
    """Pairs of a positive and a negative: .9 beats both, .2 beats .1 but not .3."""
    assert rank_bags(COHORT).auroc(ONCE) == 3 / 4


def test_instance_auroc_ungated_by_hand() -> None:
    """Positives 5 and 4 against 1, 0, 6, 3, 2, 2.5: each loses to 6 alone."""
    assert rank_instances(COHORT, gated=False).auroc(ONCE) == 10 / 12


def test_instance_auroc_gated_by_hand() -> None:
    """Of bags called negative all scores are 0: positive 5 beats six; positive 0 loses to 1 and ties with five."""
    assert rank_instances(COHORT, gated=True).auroc(ONCE) == (6 + 5 / 2) / 12


def test_one_class_alone_has_no_auroc() -> None:
    assert np.isnan(rank_bags([bag(0.9, 1, [1.0], None)]).auroc(np.ones(1)))
    assert np.isnan(rank_bags(COHORT).auroc(np.array([1, 2, 0, 0])))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=30))
def test_auroc_is_scikit_learns_with_ties_and_weights(cases: list[tuple[int, int, int]]) -> None:
    truth, score, weight = (np.array(column) for column in zip(*cases, strict=True))
    got = Ranking(truth, score, np.arange(len(truth))).auroc(weight)
    if len(set(truth[weight > 0])) < 2:
        assert np.isnan(got)
    else:
        assert got == pytest.approx(roc_auc_score(truth, score, sample_weight=weight))


def test_a_bag_drawn_twice_counts_twice() -> None:
    weights = np.array([2, 0, 1, 1])
    drawn = [COHORT[0], COHORT[0], COHORT[2], COHORT[3]]
    twice = rank_instances(drawn, gated=False).auroc(np.ones(4))
    assert rank_instances(COHORT, gated=False).auroc(weights) == pytest.approx(twice)


def test_the_interval_of_a_known_distribution_covers_it() -> None:
    """The 95 % interval of the mean of 400 draws is about ±1.96 σ/√n."""
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    got = bootstrap(400, lambda weights: float(np.average(values, weights=weights)))
    assert got.value == pytest.approx(values.mean())
    assert got.low < 0.5 < got.high
    assert got.high - got.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)


def test_the_interval_is_the_same_each_time_and_skips_draws_of_one_class() -> None:
    first = bootstrap(len(COHORT), rank_bags(COHORT).auroc)
    assert first == bootstrap(len(COHORT), rank_bags(COHORT).auroc)
    assert 0 <= first.low <= first.value <= first.high <= 1


def test_every_figure_has_a_name_and_unknown_truth_gives_none() -> None:
    assert set(cohort_metrics(COHORT)) == {
        "bag_auroc", "bag_accuracy", "instance_auroc_gated", "instance_auroc_ungated",
    }  # fmt: skip
    assert cohort_metrics(COHORT)["bag_accuracy"].value == 3 / 4
    assert set(cohort_metrics([bag(0.2, 1, [0.0], None), bag(0.1, 0, [0.0], None)])) == {"bag_auroc", "bag_accuracy"}
    assert cohort_metrics([bag(0.2, None, [0.0], None)]) == {}
