# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""result.json: what it says, and that it can be read back."""

import dataclasses
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.core.record import BagResult, BagResultd, Classes, Lesions, Model, PatchCoordinates
from scripts.core.units import Level0Pixels
from scripts.outputs.result_json import SaveResultd, as_json, from_json
from scripts.outputs.scores import SaveScoresd
from scripts.wsi.features.base import FeatureHeader
from scripts.wsi.outputs.view import slides_of
from tests.outputs.results import COHORT, result, strict_json


def test_result_json_says_all_there_is_to_say(tmp_path: Path) -> None:
    data: dict[Hashable, Any] = {"result": COHORT[0], "other": 1}
    assert SaveResultd(str(tmp_path))(data) == data
    written = strict_json(tmp_path / "d" / "result.json")
    instances = written.pop("instances")
    assert written == {
        "bag_id": "d",
        "source": "scans/d",
        "called": "positive",
        "positive": True,
        "probability": 0.9,
        "threshold": 0.5,
        "threshold_origin": "",
        "label": 1,
        "label_name": "positive",
        "flagged": 1,
        "flagged_above": "attention 1/3, in a positive bag",
        "slots": None,
        "classes": None,
        "note": "research use only, not for diagnosis",
        "model": None,
        "about": {},
        "input": "",
        "recipe": "",
    }
    facts = [[row[name] for name in ("uid", "position", "score", "truth", "flagged")] for row in instances]
    assert facts == [["d.0", 0, 5, 1, True], ["d.1", 5, 1, 0, False], ["d.2", 10, 0.5, 0, False]]
    assert sum(row["attention"] for row in instances) == pytest.approx(1)


def test_nothing_of_the_padding_is_written() -> None:
    padded: dict[Hashable, Any] = {
        "bag_id": "scan",
        "source": "scans/scan",
        "logits": torch.tensor([3.0]),
        "scores": torch.tensor([[1.0, 2.0, 99.0, 99.0]]),
        "attention": torch.tensor([[0.25, 0.75, 0.0, 0.0]]),
        "instance_label": torch.tensor([[0.0, 1.0, 1.0, 1.0]]),
        "mask": torch.tensor([[1.0, 1.0, 0.0, 0.0]]),
        "instances": json.dumps([{"uid": "first"}, {"uid": "second"}]),
    }
    assert as_json(BagResultd()(padded)["result"])["instances"] == [
        {"uid": "first", "score": 1, "attention": 0.25, "flagged": False, "truth": 0},
        {"uid": "second", "score": 2, "attention": 0.75, "flagged": True, "truth": 1},
    ]


@pytest.mark.parametrize("truth", [None, [0, 1]])
def test_what_is_read_back_is_what_was_written(tmp_path: Path, truth: list[int] | None) -> None:
    given = dataclasses.replace(
        result("x", 0.123456789, [1.0, 1 / 3], truth and 1, truth),
        model=Model("a network", "1.0", "abc"),
        threshold_origin="chosen by hand",
        about={"tilt_degrees": 18.5, "warnings": ["a gap"]},
        slots=57,
    )
    SaveResultd(str(tmp_path))({"result": given})
    written = strict_json(tmp_path / "x" / "result.json")
    assert_same(given, from_json(written, tmp_path / "x"))
    # what is not known is not claimed
    assert [("truth" in row, row["flagged"]) for row in written["instances"]] == [(truth is not None, False)] * 2
    assert written["flagged_above"].startswith("attention 1/57")


def assert_same(given: BagResult, back: BagResult) -> None:
    for field in dataclasses.fields(BagResult):
        one, other = getattr(given, field.name), getattr(back, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=field.name)
            assert one.dtype.kind == other.dtype.kind
        elif field.name in ("instances", "lesions", "classes"):
            np.testing.assert_equal(plain(other), plain(one), err_msg=field.name)
        else:
            assert one == other, field.name


def plain(value: Any) -> Any:
    if isinstance(value, Lesions):
        return dataclasses.asdict(value)
    return value._asdict() if isinstance(value, Classes) else list(value or [])


def test_a_slide_of_several_classes_is_read_back_with_its_patches(tmp_path: Path) -> None:
    """Its patches lie in scores.h5, of which result.json says the name."""
    header = FeatureHeader(
        "CLAM", 3, 4, "s", "", Level0Pixels(256), "given", Level0Pixels(256), "level-0 pixels", None, (1024, 512)
    )
    given = dataclasses.replace(
        result("x", 0.9, [1.0, 1 / 3, 0.2], 2, [0, 1, 1]),
        instances=PatchCoordinates(np.array([[0, 0], [256, 0], [512, 256]]), np.zeros(3)),
        lesions=Lesions(np.array([0, 1, 2]), 2, (2,)),
        classes=Classes(("N", "FEA", "DCIS"), np.array([0.1, 0.3, 0.6]), ("benign", "atypical", "malignant"), "N"),
        about={"slides": [{**header.as_json(), "slide_size": [1024, 512], "origin": [0, 0], "source": "s.h5"}]},
    )
    SaveScoresd(str(tmp_path))({"result": given})
    SaveResultd(str(tmp_path))({"result": given})
    written = strict_json(tmp_path / "x" / "result.json")
    assert written["instances"] == "scores.h5"
    assert (written["called"], written["positive"]) == ("DCIS", True)
    assert written["classes"]["probabilities"] == pytest.approx({"N": 0.1, "FEA": 0.3, "DCIS": 0.6})
    assert written["classes"]["probabilities_of_groups"] == pytest.approx(
        {"benign": 0.1, "atypical": 0.3, "malignant": 0.6}
    )
    back = from_json(written, tmp_path / "x")
    assert_same(given, back)
    (slide,) = slides_of(back)
    assert slide.header == header
