# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The sets of new bags hold their class as often as was asked for, whatever the network says and how it is scaled."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.conformal import ONE_LOGIT, Conformal, choose_conformal, label_set, log_odds_against
from scripts.core.errors import InputError

NAMES = ("N", "FEA", "DCIS")


@pytest.mark.parametrize(
    ("classes", "bags", "coverage"), [(2, (24, 33), 0.9), (2, (6, 12), 0.8), (3, (24, 15, 46), 0.9)]
)
def test_of_500_draws_each_class_is_covered_as_asked_for_and_hardly_more(
    classes: int, bags: tuple[int, ...], coverage: float
) -> None:
    generator = np.random.default_rng(0)
    names = ONE_LOGIT if classes == 2 else NAMES
    fresh = np.repeat(np.arange(classes), 20)

    def logits_of(labels: np.ndarray) -> np.ndarray:
        """Of a network that is often wrong and far too sure."""
        noise = generator.normal(size=(len(labels), 1 if classes == 2 else classes))
        return 8 * (noise + (labels[:, None] if classes == 2 else np.eye(classes)[labels]))

    labels = np.repeat(np.arange(classes), bags)
    held = np.zeros(classes)
    for _ in range(500):
        conformal = choose_conformal(logits_of(labels), labels, names, coverage)
        cuts = np.array([np.inf if cut is None else cut for cut in conformal.cuts.values()])
        hits = (log_odds_against(logits_of(fresh)) <= cuts)[np.arange(len(fresh)), fresh]
        held += [hits[fresh == k].mean() / 500 for k in range(classes)]
    assert (held >= coverage).all()
    assert (held <= coverage + 1 / (np.array(bags) + 1) + 0.01).all()


LOGITS = st.lists(st.tuples(st.booleans(), st.integers(-50, 50)), max_size=60)


@given(LOGITS, st.sampled_from([0.5, 0.8, 0.9]), st.integers(-60, 60))
def test_of_one_logit_the_cut_is_an_order_statistic_of_each_class(
    bags: list[tuple[bool, int]], coverage: float, new: int
) -> None:
    labels, logits = np.array([positive for positive, _ in bags], int), np.array([float(logit) for _, logit in bags])
    conformal = choose_conformal(logits[:, None], labels, ONE_LOGIT, coverage)
    wanted = []
    for name, of_class, sign in (("negative", logits[labels == 0], -1), ("positive", logits[labels == 1], 1)):
        k = ((len(of_class) + 1) * round(10 * (1 - coverage))) // 10
        if (
            k == 0 or sign * new >= np.sort(sign * of_class)[k - 1]
        ):  # at least the k-th smallest, or at most the largest
            wanted.append(name)
        assert (conformal.cuts[name] is None) == (k == 0)
        assert conformal.bags[name] == len(of_class)
    assert label_set([float(new)], ONE_LOGIT, conformal) == tuple(wanted)


def test_odds_order_bags_as_the_softmax_does_and_go_on_where_it_is_rounded() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(log_odds_against(logits), np.log((1 - p) / p), atol=1e-5)
    sure = log_odds_against(np.array([[90.0, 0, 0], [91.0, 0, 0]]))[:, 0]
    assert sure[1] < sure[0] < -80


@pytest.mark.parametrize("coverage", [0, 1, 90, float("nan"), "x"])
def test_what_is_no_coverage_is_refused_and_so_are_sets_of_other_classes(coverage: Any) -> None:
    with pytest.raises(InputError, match=f"the coverage {coverage} is no share: give one between 0 and 1, such as 0.9"):
        choose_conformal(np.zeros((2, 1)), np.array([0, 1]), ONE_LOGIT, coverage)
    with pytest.raises(InputError, match="sets are of the classes N, the network has negative, positive: calibrate"):
        label_set([0.0], ONE_LOGIT, Conformal(0.9, {"N": None}, {"N": 2}))
