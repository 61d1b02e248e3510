# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A training whose attention has collapsed says so once, of the epoch it kept, and what to try."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from scripts.engine.collapse import AttentionSpread, warn_of_collapse
from scripts.engine.run_record import read_record, run_file
from scripts.networks import Features, GatedAttentionPool, MeanPool, MILNetwork, SmoothTransformer
from tests.bundle.commands import run_here
from tests.outputs.results import result
from tests.studies.cohort import KEYS, write_features


def test_the_spread_is_the_mean_over_bags_of_more_than_one_instance() -> None:
    metric = AttentionSpread(lambda output: output)
    assert math.isnan(metric.compute())
    uneven = replace(result("a", 0.5, [0.0, 0.0], 1), attention=np.array([0.9, 0.1]))
    for batch in ([uneven], [result("b", 0.5, [3.0], 1)], [replace(uneven, attention=np.array([0.5, 0.5]))]):
        metric.update(batch)
    assert metric.compute() == pytest.approx(0.8 / 2)
    metric.reset()
    metric.update([result("b", 0.5, [3.0], 1)])
    assert math.isnan(metric.compute())


@pytest.mark.parametrize(
    ("kept", "pool", "warned"),
    [
        ({"val_attention_spread": 0.004}, GatedAttentionPool(4), True),
        ({"val_attention_spread": 0.02}, GatedAttentionPool(4), False),
        ({"val_attention_spread": 0.0}, MeanPool(), False),  # as it should be
        ({"val_attention_spread": 0.0}, SmoothTransformer(4, MeanPool(), heads=1), False),
        ({"val_loss": 0.1}, GatedAttentionPool(4), False),  # validated without the figure
        (None, GatedAttentionPool(4), False),  # never validated
    ],
)
def test_only_attention_that_should_differ_and_does_not_is_warned_of(
    kept: Any, pool: nn.Module, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    network = MILNetwork(Features(4), pool, nn.Linear(4, 1))
    wrapped: Any = SimpleNamespace(module=network)  # as DDP does
    for given in (network, wrapped):
        caplog.clear()
        warn_of_collapse(kept, given)
        assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
        assert ("deviates by 0.004" in caplog.text) == warned


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "scale_free"])
def test_the_papers_loss_shrinks_scores_to_nothing_and_is_reported_and_that_without_scale_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, variant: str
) -> None:
    data, out = write_features(tmp_path / "data", 24), tmp_path / "out"
    keys = {
        **KEYS,
        "max_epochs": 15,
        "batch_size": 4,
        "learning_rate": 0.003,
        "num_workers": 0,
        "variant": variant,
        "alpha": 0.9,
    }
    with caplog.at_level(logging.WARNING):
        run_here("ct", ["train", "on_features"], dataset_dir=str(data), ckpt_dir=str(out), output_dir=str(out), **keys)
    record = read_record(run_file(out / "model.pt"))
    assert record is not None
    assert len(record["epochs"]) == 15
    spread = record["kept"]["val_attention_spread"]
    warnings = [each.message for each in caplog.records if "attention has collapsed" in each.message]
    if variant == "paper":
        assert spread < 0.01
        (warning,) = warnings
        assert f"deviates by {spread:.2g}" in warning
        assert "--variant scale_free or a smaller --alpha" in warning
    else:
        assert spread > 0.1
        assert warnings == []
