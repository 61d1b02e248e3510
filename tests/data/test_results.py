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

import hashlib
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.data.results import BagResult, BagResultd, Model, ModelCard, SignResultd
from scripts.errors import InputError


def item(logit: float = 2.0, **more: Any) -> Mapping[Hashable, Any]:
    """As decollated from a batch: five places, of which three are real."""
    given: dict[Hashable, Any] = {
        "bag_id": "scan",
        "source": "scans/scan",
        "logits": torch.tensor([logit]),
        "scores": torch.tensor([[1.0, 3.0, 2.0, 9.0, 9.0]]),
        "attention": torch.tensor([[0.1, 0.6, 0.3, 0.0, 0.0]]),
        "mask": torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]),
        "instances": json.dumps([{"id": name} for name in "abc"]),
    }
    given.update(more)
    return given


def result(logit: float = 2.0, threshold: float = 0.5, **more: Any) -> BagResult:
    got: BagResult = BagResultd(threshold)(item(logit, **more))["result"]
    return got


def test_padding_is_gone_and_the_probability_is_the_sigmoid() -> None:
    got = result()
    assert got.probability == pytest.approx(1 / (1 + np.exp(-2)))
    np.testing.assert_allclose(got.scores, [1, 3, 2])
    np.testing.assert_allclose(got.attention, [0.1, 0.6, 0.3])
    assert got.label is None
    assert got.truth is None


def test_label_and_truth_are_carried() -> None:
    got = result(label=torch.tensor([1.0]), instance_label=torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]))
    assert got.label == 1
    assert got.truth is not None
    assert got.truth.tolist() == [0, 1, 0]


def test_instances_above_the_average_of_a_positive_bag_are_flagged() -> None:
    assert result().flagged.tolist() == [False, True, False]


def test_nothing_is_flagged_in_a_negative_bag() -> None:
    assert result(logit=-2).flagged.tolist() == [False, False, False]
    assert result(logit=2, threshold=0.95).flagged.tolist() == [False, False, False]


def test_the_one_slice_of_a_positive_scan_is_flagged() -> None:
    one = BagResult("a", "a", 0.9, 0.5, np.array([0.2]), np.array([1.0]), [{"id": 0}])
    assert one.flagged.tolist() == [True]


def test_attention_is_measured_by_the_slots_of_a_network_that_has_them() -> None:
    got: BagResult = BagResultd(slots=2)(item())["result"]
    assert got.flagged.tolist() == [False, True, False]
    np.testing.assert_allclose(got.times_average, [0.2, 1.2, 0.6], rtol=1e-6)


def test_a_result_is_signed_with_the_model_and_the_origin_of_the_threshold(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"name": "a network", "version": "1.2.3"}')
    weights = tmp_path / "model.pt"
    card = ModelCard(str(tmp_path), str(weights))
    assert card.read() == Model("a network", "1.2.3", "")
    weights.write_bytes(b"weights")
    signed = SignResultd(card, "chosen by hand")(BagResultd()(item()))["result"]
    assert signed.model == Model("a network", "1.2.3", hashlib.sha256(b"weights").hexdigest())
    assert signed.threshold_origin == "chosen by hand"


def test_a_bundle_without_metadata_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"metadata\.json cannot be read .*: give the bundle's folder as --bundle_root$"
    ):
        ModelCard(str(tmp_path), "model.pt").read()
