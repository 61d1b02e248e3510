# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The experiment as such; its figures come from `python -m benchmarks.hmil`."""

import json

import pytest
import torch
from scipy import stats

from benchmarks.hmil import FLAT, RESULTS, WAYS, Task, Training, compare, make_bags, paired_difference, table, train

SMALL = Task(bags_per_class=2, test_bags_per_class=2)


def test_bags_follow_from_the_seed_alone() -> None:
    (to_train, to_test), again = make_bags(SMALL, 3), make_bags(SMALL, 3)
    for (image, label), (same, same_label) in zip([*to_train, *to_test], [*again[0], *again[1]], strict=True):
        assert label == same_label
        torch.testing.assert_close(image, same)
    assert [label for _, label in to_train] == sorted(list(range(7)) * 2)
    assert not any(torch.equal(image, other) for image, _ in to_train for other, _ in to_test)


def test_only_the_loss_sets_the_two_sides_apart() -> None:
    """After no epoch both are one network: same weights, and nothing tuned for either."""
    bags, _ = make_bags(SMALL, 0)
    flat, hmil = (train(WAYS[way], bags, SMALL, Training(epochs=0), seed=0) for way in (FLAT, "HMIL"))
    for mine, theirs in zip(flat.parameters(), hmil.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    a, b = [0.5, 0.7, 0.65, 0.4], [0.45, 0.5, 0.7, 0.3]
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    got = paired_difference(a, b)
    assert (got["low"], got["high"]) == pytest.approx((interval.low, interval.high))
    assert got["mean"] == pytest.approx(0.075)


@pytest.mark.slow
def test_it_runs() -> None:
    found = compare([0, 1], SMALL, Training(epochs=1))
    assert set(found["fine_accuracy"]) == set(WAYS)
    assert all(0 <= value <= 1 for values in found["fine_accuracy"].values() for value in values)
    assert len(table(found).splitlines()) == len(WAYS) + 2


def test_the_figures_kept_belong_to_the_experiment_as_it_is() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert kept["task"] == json.loads(json.dumps(Task()._asdict()))
    assert kept["training"].items() >= Training()._asdict().items()
    assert set(kept["fine_accuracy"]) == set(WAYS)
    for way, difference in kept["fine_accuracy_minus_flat"].items():
        wanted = paired_difference(kept["fine_accuracy"][way], kept["fine_accuracy"][FLAT])
        assert difference == pytest.approx(wanted, abs=2e-4)
