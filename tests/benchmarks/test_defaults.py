# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The cohorts are what they are called, and the training is that of the shipped configs."""

import json

import pytest
import torch

from benchmarks.bags import edges
from benchmarks.defaults import (
    BEFORE,
    CONFIGS,
    LONGER,
    NETWORKS,
    SHARE,
    SHIPPED,
    labels,
    logits,
    settings_of,
    slides,
    train,
)


def test_every_other_slide_has_one_contiguous_lesion_and_features_vary_as_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort, faint = slides(10, 4, spread=1.0), slides(10, 4, spread=0.1)
    monkeypatch.setattr("benchmarks.defaults.LESION", 0.0)
    healthy = slides(10, 4, spread=1.0)
    assert labels(cohort).tolist() == [0, 1] * 5
    for bag, paler, without in zip(cohort, faint, healthy, strict=True):
        torch.testing.assert_close(0.1 * bag["image"], paler["image"])
        lesion = (bag["image"] - without["image"]).norm(dim=0).nonzero()[:, 0]
        n = bag["image"].shape[1]
        low, high = (float(bag["label"]) * share * n for share in SHARE)
        assert low - 1 <= len(lesion) <= high + 1
        assert float(bag["label"]) == (len(lesion) > 0)
        pairs = edges(bag["coords"].long())
        touching = set(pairs[0, torch.isin(pairs, lesion).all(dim=0)].tolist())
        assert len(lesion) < 2 or touching == set(lesion.tolist())
    assert not torch.equal(cohort[0]["image"], slides(1, 5, spread=1.0)[0]["image"])


def test_the_settings_compared_follow_the_configs() -> None:
    shipped = json.loads((CONFIGS / "train.json").read_text(encoding="utf-8"))
    for name in NETWORKS:
        settings = settings_of(name)
        assert settings[SHIPPED] == {}
        assert settings[LONGER] == {"max_epochs": 2 * shipped["max_epochs"], "patience": 2 * shipped["patience"]}
        assert settings[BEFORE]["learning_rate"] != shipped["learning_rate"]


@pytest.mark.slow
def test_the_network_that_comes_back_is_the_best_of_the_validations() -> None:
    bags, validation = slides(6, 0, spread=1.0), slides(4, 1, spread=1.0)
    network, course = train(NETWORKS["ABMIL"], bags, validation, seed=0, max_epochs=4, learning_rate=0.01)
    assert len(course) == 4
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits(network, validation))[:, 0], torch.from_numpy(labels(validation))
    )
    assert float(loss) == pytest.approx(min(metrics["val_loss"] for metrics in course), rel=1e-4)
    assert len(train(NETWORKS["ABMIL"], bags, validation, seed=0, max_epochs=9, patience=1, learning_rate=0.0)[1]) == 2
