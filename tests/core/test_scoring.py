# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The score that ranks and flags: what is flagged by it would be called positive, or gives more than its share."""

import json
import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.errors import InputError
from scripts.core.record import BagResult, BagResultd
from scripts.core.scoring import SOURCES, average_height, score_name
from scripts.engine.evaluator import BagInferer
from tests.networks.compositions import FEATURES, network, thorough

CLASSES = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")
ATTEND = ["mean", "gated", "attention, three classes", "smooth early, chain", "smooth early, exact lattice", "HMIL"]
few = settings(thorough, max_examples=8)


def judged(net: Any, image: torch.Tensor, coords: torch.Tensor, **asked: Any) -> BagResult:
    """The result of one bag [D, N], as a run makes it."""
    n, inferer = image.shape[1], {key: asked[key] for key in ("score", "score_smoothing") if key in asked}
    mask = torch.ones(1, 1, n)
    with torch.no_grad():
        told = BagInferer(**inferer)(image[None], net, coords[None], mask)[0]["pred"]
    count = told["logits"].shape[1]
    if count > 1:
        asked = {**asked, "class_names": CLASSES[:count]}
        asked.pop("threshold", None)
    bag: dict[Hashable, Any] = {
        "bag_id": "bag",
        "source": "",
        "mask": mask[0],
        "instances": json.dumps([{"id": k} for k in range(n)]),
    }
    got: BagResult = BagResultd(**asked)({**bag, **{key: value[0] for key, value in told.items()}})["bag_result"]
    return got


def a_bag(net: Any, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dims = max(getattr(net, "spatial_dims", 0), 1)
    return 3 * torch.randn(FEATURES, n, generator=generator), torch.arange(float(n)).expand(dims, n)


@pytest.mark.parametrize("name", [*ATTEND, "instance mean", "instance max, three classes"])
@given(n=st.integers(1, 6), seed=st.integers(0, 99), threshold=st.floats(0.05, 0.95), slope=st.floats(0.3, 3))
@few
def test_an_instance_flagged_by_its_own_logit_would_alone_be_called_positive(
    name: str, n: int, seed: int, threshold: float, slope: float
) -> None:
    """Of one logit the others would not; of several classes the score is of the finding that the bag is called."""
    net = network(name)
    image, coords = a_bag(net, n, seed)
    asked: dict[str, Any] = {"score": "instance", "threshold": threshold, "scaling": (slope, 0.1)}
    bag = judged(net, image, coords, **asked)
    assert bag.score_name == "instance"
    alone = [judged(net, image[:, k : k + 1], coords[:, :1], **asked) for k in range(n)]
    certain = np.array([abs(one.scores[0] - one.flag_above) > 1e-4 for one in alone])  # but for rounding
    called = np.array([one.positive for one in alone])
    assert not (bag.flagged & ~called & certain).any()
    if bag.positive and bag.classes is None and n > 1:
        assert (bag.flagged == called)[certain].all()
    if not bag.positive:
        assert not bag.flagged.any()


@pytest.mark.parametrize("name", ATTEND)
@given(n=st.integers(2, 6), seed=st.integers(0, 99), threshold=st.floats(0.05, 0.95))
@few
def test_a_positive_bag_has_an_instance_above_its_share_unless_the_bias_alone_makes_it_positive(
    name: str, n: int, seed: int, threshold: float
) -> None:
    net = network(name)
    bag = judged(net, *a_bag(net, n, seed), score="evidence", threshold=threshold)
    assert (bag.score_name, bag.scores.tolist()) == ("evidence", bag.of_instances["evidence"].tolist())
    assert bag.flagged.any() == (bag.positive and bool((bag.scores > 0).any()))
    assert (bag.scores[bag.flagged] > 0).all()


@pytest.mark.parametrize(
    ("name", "asked", "taken"),
    [
        ("max", "instance", "attention"),
        ("max", "evidence", "attention"),
        ("instance mean", "evidence", "attention"),
        ("instance mean", "instance", "instance"),
        ("gated", "attention × probability", "attention × probability"),
    ],
)
def test_where_a_network_has_no_such_score_attention_is_taken_and_named(name: str, asked: str, taken: str) -> None:
    net = network(name)
    bag = judged(net, *a_bag(net, 4, 0), score=asked, threshold=0.01)
    assert bag.score_name == taken
    if taken.startswith("attention"):
        assert bag.flag_above is None
        assert bag.flag_rule == "attention 1/4, in a positive bag"
        np.testing.assert_array_equal(bag.flagged, bag.attention > 0.25)
        factor = bag.attention * bag.probability if "×" in taken else bag.attention_logits
        assert factor is not None
        np.testing.assert_allclose(bag.scores, factor, rtol=1e-6)


@pytest.mark.parametrize("score", SOURCES)
@pytest.mark.parametrize("name", ["smooth mid, chain", "smooth early, exact lattice"])
def test_smoothing_that_changes_nothing_flags_the_same(name: str, score: str) -> None:
    """α → 0 is the identity; only the words tell of it."""
    net = network(name)
    for seed in range(5):
        image, coords = a_bag(net, 5, seed)
        plain, smoothed = (
            judged(net, image, coords, score=score, threshold=0.01, score_smoothing=alpha) for alpha in (0, 1e-9)
        )
        np.testing.assert_allclose(smoothed.scores, plain.scores, atol=1e-5)
        np.testing.assert_array_equal(smoothed.flagged, plain.flagged)
        assert smoothed.flag_rule.startswith("smoothed (α 1e-09) ")


def test_of_slots_the_share_is_that_of_all_of_them() -> None:
    net = network("gated, slots")
    bag = judged(net, *a_bag(net, 4, 3), score="evidence", threshold=0.01)
    bias = net.head.bias.item()
    assert bag.flag_above == pytest.approx(max(0, (math.log(0.01 / 0.99) - bias) / 4), abs=1e-5)
    with_slots = judged(net, *a_bag(net, 4, 3), score="evidence", threshold=0.9, slots=16)
    assert with_slots.flag_above == pytest.approx((math.log(9) - bias) / 16, abs=1e-5)


def test_the_height_of_average_attention_is_that_of_the_softmax() -> None:
    logits = np.array([0.3, -1.0, 2.0], dtype=np.float32)
    attention = np.exp(logits) / (np.exp(logits).sum() + 5)  # slots hold the rest
    height = average_height(logits, attention, 8)
    np.testing.assert_array_equal(attention > 1 / 8, logits > height)
    assert average_height(attention, attention, 3) == 1 / 3  # shares, as of MaxPool


def test_a_score_may_be_typed_without_the_sign_that_no_keyboard_has() -> None:
    for text in ("attention x probability", "attention*probability", "Attention × Probability"):
        assert score_name(text) == "attention × probability"
    for text in ("", "attn", "instances", "attentionxprobability"):
        with pytest.raises(
            InputError, match=r"the score .* is not known: give --score instance, evidence, attention or"
        ):
            score_name(text)
    with pytest.raises(InputError, match=r"the scaling's slope is 0: give one above 0 with --scaling"):
        BagResultd(scaling=(0, 0))
