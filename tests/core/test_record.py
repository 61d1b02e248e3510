# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What is found in one bag: its probability and call, what is flagged in it, and for patches and classes the same."""

import hashlib
import json
from collections.abc import Sequence
from decimal import Decimal, localcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.core.conformal import Conformal
from scripts.core.errors import InputError
from scripts.core.record import BagResult, BagResultd, Model, ModelCard, PatchCoordinates, SignResultd
from scripts.core.scoring import probabilities
from scripts.core.units import Level0Pixels
from scripts.outputs.drawing import headline
from scripts.wsi.features.base import FeatureHeader
from scripts.wsi.outputs.view import slides_of

NAMES = ("N", "FEA", "DCIS")
GROUPS = {"benign": ["N"], "other": ["FEA", "DCIS"]}
PIXELS = Level0Pixels(256)
HEADER = FeatureHeader("CLAM", 2, 4, "one", "", PIXELS, "given", PIXELS, "level-0 pixels", None, (1024, 512))


def item(*logits: float, **more: Any) -> Any:  # a dict, whose keys MONAI calls Hashable
    """As decollated from a batch: five places, of which three are real."""
    return {
        "bag_id": "scan",
        "source": "scans/scan",
        "logits": torch.tensor(logits or [2.0]),
        "scores": torch.tensor([[1.0, 3.0, 2.0, 9.0, 9.0]]),
        "attention": torch.tensor([[0.1, 0.6, 0.3, 0.0, 0.0]]),
        "mask": torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]),
        "instances": json.dumps([{"id": name} for name in "abc"]),
        **more,
    }


def result(logit: float = 2.0, threshold: float = 0.5, slots: int | None = None, **more: Any) -> BagResult:
    got: BagResult = BagResultd(threshold, slots)(item(logit, **more))["bag_result"]
    return got


def test_padding_is_gone_and_the_probability_is_the_sigmoid() -> None:
    got = result()
    assert got.probability == pytest.approx(1 / (1 + np.exp(-2)))
    assert got.logits == (2.0,)
    np.testing.assert_allclose(got.scores, [1, 3, 2])
    np.testing.assert_allclose(got.attention, [0.1, 0.6, 0.3])
    assert (got.label, got.truth, got.label_positive, got.true_verdict) == (None, None, None, "")
    known = result(label=torch.tensor([1.0]))
    assert (known.label, known.label_positive, known.true_verdict) == (1, True, "positive")


@pytest.mark.parametrize("scale", [1, 20, 80])
def test_probabilities_are_those_of_a_hundred_digits_and_tell_sure_bags_apart(scale: int) -> None:
    logits, scaling = np.random.default_rng(0).normal(0, scale, (9, 3)), (1.3, -0.7)
    with localcontext(prec=100):
        for of_bag in logits.tolist():
            one = 1 / (1 + (-(Decimal(scaling[0]) * Decimal(of_bag[0]) + Decimal(scaling[1]))).exp())
            assert float(probabilities(of_bag[:1], scaling)[0]) == pytest.approx(float(one), rel=1e-12)
            powers = [(Decimal(scaling[0]) * Decimal(logit)).exp() for logit in of_bag]
            several = [float(power / sum(powers)) for power in powers]
            assert probabilities(of_bag, scaling) == pytest.approx(several, rel=1e-12)
    of_bags = [result(logit).probability for logit in (-900.0, -40.0, -30.0, 18.0, 19.0, 30.0)]
    assert sorted(set(of_bags)) == of_bags  # in single precision the last three are 1
    np.testing.assert_allclose(probabilities(logits, scaling), [probabilities(each, scaling) for each in logits])


def test_a_bag_rescaled_is_what_the_scaling_would_have_made_of_it() -> None:
    wanted = BagResultd(0.3, scaling=(2.0, -1.0))(item(1.5))["bag_result"]
    assert result(1.5).rescaled((2.0, -1.0), 0.3).probability == wanted.probability
    assert result(1.5).rescaled((2.0, -1.0), 0.3).threshold == 0.3
    assert result(1.5, threshold=0.7).rescaled((1, 0)).threshold == 0.7
    judge = partial(BagResultd, class_names=NAMES)
    for scaled, one in ((judge(scaling=(0.5, 0.0)), (3.0, 1.0, 2.0)), (judge(scaling=(4.0, 0.0)), (0.0, 0.1, 0.0))):
        wanted = scaled(item(*one))["bag_result"]
        got = judge()(item(*one))["bag_result"].rescaled(scaled.scaling, 0.9)
        np.testing.assert_array_equal(got.classes.probabilities, wanted.classes.probabilities)
        assert (got.probability, got.threshold, got.verdict) == (wanted.probability, None, wanted.verdict)


def test_instances_above_the_average_of_a_positive_bag_are_flagged() -> None:
    assert result().flagged.tolist() == [False, True, False]
    assert result(logit=-2).flagged.tolist() == [False] * 3
    assert result(threshold=0.95).flagged.tolist() == [False] * 3
    one = BagResult("a", "a", 0.9, 0.5, np.array([0.2]), np.array([1.0]), [{"id": 0}])
    assert one.flagged.tolist() == [True]
    of_slots = result(slots=2)  # the average of a network that has them
    np.testing.assert_allclose(of_slots.times_average, [0.2, 1.2, 0.6], rtol=1e-6)
    assert of_slots.flagged.tolist() == [False, True, False]


def test_a_result_is_signed_with_the_model_and_the_origin_of_the_threshold(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"name": "a network", "version": "1.2.3"}')
    weights = tmp_path / "model.pt"
    card = ModelCard(str(tmp_path), str(weights))
    assert card.read() == Model("a network", "1.2.3", "")
    weights.write_bytes(b"weights")
    signed = SignResultd(card)(BagResultd(threshold_origin="chosen by hand")(item()))["bag_result"]
    assert signed.model == Model("a network", "1.2.3", hashlib.sha256(b"weights").hexdigest())
    assert signed.threshold_origin == "chosen by hand"
    assert signed.learned_from == []
    about = {"name": "a network", "version": "1.2.3", "data_source": "made-up scans"}
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(about))
    for content, said in ((b"weights", ["the network was trained on made-up scans"]), (b"others", [])):
        released = {"models/model.pt": hashlib.sha256(content).hexdigest()}
        (tmp_path / "manifest.json").write_text(json.dumps(released))
        of_release = SignResultd(ModelCard(str(tmp_path), str(weights)))(BagResultd()(item()))["bag_result"]
        assert of_release.learned_from == said  # of weights of somebody else the release says nothing
        assert ("made-up scans" in headline(of_release, "none flagged")) == bool(said)
    with pytest.raises(InputError, match=r"metadata\.json cannot be read .*--bundle_root"):
        ModelCard(str(tmp_path / "elsewhere"), str(weights)).read()


# --- patches of slides


def of_slides(**more: Any) -> BagResult:
    """Two patches of one slide and one of another, then padding."""
    coords = torch.tensor([[0, 0, 1, 0, 0], [256, 512, 0, 0, 0], [0, 0, 768, 0, 0]], dtype=torch.float64)
    one = {**HEADER.as_json(), "source": "a.h5"}
    about = {"slides": [one, {**one, "slide_id": "two", "source": "b.h5"}], "lesions": {"count": 2, "excluded": [2]}}
    got: BagResult = BagResultd()(item(stored_coords=coords, about=json.dumps(about), **more))["bag_result"]
    return got


def test_patches_are_rows_only_when_they_are_asked_for() -> None:
    rows = of_slides().instances
    assert isinstance(rows, PatchCoordinates)
    assert rows.coords.tolist() == [[256, 0], [512, 0], [0, 768]]
    assert list(rows) == rows[:] == [{"id": n, "slide": n // 2, "x": x, "y": y} for n, (x, y) in enumerate(rows.coords)]
    alone = PatchCoordinates(np.array([[0.5, 1.0]]), np.zeros(1))
    assert alone[0] == {"id": 0, "x": 0.5, "y": 1.0}  # micrometres need not be whole


def test_each_slide_of_a_bag_gets_its_own_patches() -> None:
    known = {"instance_label": torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]]), "lesion": torch.tensor([[0, 2, 1, 0, 0]])}
    both = of_slides(**known)
    assert both.lesions is not None
    assert (both.lesions.of_instance.tolist(), both.lesions.count, both.lesions.excluded) == ([0, 2, 1], 2, (2,))
    one, two = slides_of(both)
    assert one.header == HEADER
    assert (two.header.slide_id, two.source) == ("two", "b.h5")
    assert (one.coords.tolist(), two.coords.tolist()) == ([[256, 0], [512, 0]], [[0, 768]])
    np.testing.assert_allclose(one.times_average, [0.3, 1.8], rtol=1e-6)  # of the whole bag
    assert (one.flagged.tolist(), two.flagged.tolist()) == ([False, True], [False])
    assert [slide.truth.tolist() for slide in (one, two) if slide.truth is not None] == [[0, 1], [1]]


# --- several classes


def of_classes(logits: Sequence[float], negative_class: int | str | None = 0, **more: Any) -> BagResult:
    judge = BagResultd(class_names=NAMES, hierarchy=GROUPS, negative_class=negative_class)
    got: BagResult = judge(item(*logits, **more))["bag_result"]
    assert got.classes is not None
    return got


def test_the_highest_logit_is_what_a_bag_is_called() -> None:
    got = of_classes([0.0, 2.0, 1.0], label=torch.tensor([2.0]))
    share = np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum()
    assert got.classes is not None
    np.testing.assert_allclose(got.classes.probabilities, share, rtol=1e-6)
    assert got.classes.of_groups == pytest.approx({"benign": share[0], "other": share[1] + share[2]})
    assert (got.verdict, got.true_verdict, got.positive, got.label_positive) == ("FEA", "DCIS", True, True)
    assert got.probability == pytest.approx(1 - share[0])  # of a finding at all
    got = of_classes([0.1, 0.0, 0.0])  # which is likelier than not, and yet the bag is called normal
    assert (got.verdict, got.positive, got.threshold, got.probability > 0.5) == ("N", False, None, True)
    with pytest.raises(InputError, match="the network has 2 classes, class_names has 3: give a name to each"):
        of_classes([0.0, 1.0])


def test_the_class_without_a_finding_flags_nothing() -> None:
    named: Any
    for named in (0, "N"):
        none = of_classes([3.0, 0.0, 0.0], named)
        assert (none.verdict, none.positive, none.flagged.tolist()) == ("N", False, [False] * 3)
    for named in ("none", None):
        every = of_classes([3.0, 0.0, 0.0], named)
        assert (every.verdict, every.positive, every.flagged.tolist()) == ("N", True, [False, True, False])
        assert every.probability == pytest.approx(np.exp(3) / (np.exp(3) + 2))


@pytest.mark.parametrize(
    ("logits", "negative", "row"), [((0, 1, 2), 0, 2), ((3, 2, 1), 0, 1), ((3, 2, 1), None, 0), ((0, 1, 2), "DCIS", 1)]
)
def test_a_network_that_attends_by_class_is_asked_for_the_likeliest_finding(
    logits: tuple[int, ...], negative: int | str | None, row: int
) -> None:
    """Also of a bag called negative: what speaks for normal tissue is no place of a lesion."""
    scores = torch.arange(15.0).view(3, 5)
    attention = torch.softmax(scores.flip(1), dim=1)
    got = of_classes(logits, negative, scores=scores, attention=attention)
    np.testing.assert_allclose(got.scores, scores[row, :3])
    np.testing.assert_allclose(got.attention, attention[row, :3])


ORDER = "the hierarchy has N, FEA, DCIS: give the classes of the hierarchy"  # whose rows those of HMIL are


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 1.5}, "the threshold 1.5 is no probability: give one from 0 to 1 with --threshold"),
        ({"threshold": float("nan")}, "the threshold nan is no probability"),
        *(
            ({"class_names": NAMES, "negative_class": unknown}, "give one of N, FEA, DCIS, its number from 0, or none")
            for unknown in (3, -1, "LCIS", 0.5)
        ),
        *(({"class_names": names, "hierarchy": GROUPS}, ORDER) for names in (NAMES[::-1], NAMES[:2], None)),
    ],
)
def test_options_that_would_do_nothing_or_harm_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BagResultd(**given)


def test_answers_that_are_no_numbers_or_would_be_called_at_a_threshold_of_another_network_are_refused() -> None:
    with pytest.raises(InputError, match=r"the likeliest is called, at no threshold: leave out 0\.9"):
        BagResultd(0.9, class_names=NAMES)(item(1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="the network gives no finite logits for scan: check its weights"):
        result(float("nan"))


def test_probabilities_are_those_of_the_scaled_logits() -> None:
    scaled = BagResultd(scaling=(0.5, -1.0))(item(4.0))["bag_result"]
    assert scaled.probability == pytest.approx(1 / (1 + np.exp(-1)))
    classes = BagResultd(class_names=NAMES, scaling=(0.5, 0.0))(item(2.0, 4.0, 6.0))["bag_result"].classes
    np.testing.assert_allclose(classes.probabilities, np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum(), rtol=1e-6)


def test_the_labels_that_a_bag_may_have_do_not_change_with_the_scaling() -> None:
    sets = Conformal(0.9, {"negative": 1.5, "positive": 0.0}, {"negative": 30, "positive": 30})
    for scaling in ((1.0, 0.0), (0.5, -1.0)):
        judge = BagResultd(scaling=scaling, conformal=sets)
        found = [judge(item(logit))["bag_result"].label_set for logit in (-1.0, 1.0, 2.0)]
        assert found == [("negative",), ("negative", "positive"), ("positive",)]
    nothing = BagResultd(class_names=NAMES, conformal=Conformal(0.5, dict.fromkeys(NAMES, -9.0), {}))
    assert nothing(item(0.0, 1.0, 2.0))["bag_result"].label_set == ()
    assert result(0.0).label_set is None
