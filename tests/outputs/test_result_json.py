# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""result.json and scores.h5: what they say, and that both can be read back without loss."""

import dataclasses
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.core.record import BagResult, Classes, Lesions, Model, PatchCoordinates
from scripts.core.units import Level0Pixels
from scripts.outputs.result_json import SaveResultd, from_json
from scripts.outputs.scores import SaveScoresd, normalisation, read_scores
from scripts.wsi.features.base import FeatureHeader
from scripts.wsi.outputs.view import slides_of
from tests.outputs.results import COHORT, result, strict_json
from tests.wsi.outputs.slide_results import bag, grid, header


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


@pytest.mark.parametrize("truth", [None, [0, 1]])
def test_what_is_read_back_is_what_was_written(tmp_path: Path, truth: list[int] | None) -> None:
    given = dataclasses.replace(
        result("x", 0.123456789, [1.0, 1 / 3], 1 if truth else None, truth),
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


RNG = np.random.default_rng(0)


def saved(folder: Path, result: BagResult) -> Path:
    data: dict[Hashable, Any] = {"result": result, "other": 1}
    assert SaveScoresd(str(folder))(data) == data
    return folder / result.bag_id / "scores.h5"


def one_slide() -> BagResult:
    model, lesions = Model("pathology_wsi_smooth_mil", "1.2.3", "ab" * 32), Lesions(RNG.integers(0, 4, 12), 3, (2,))
    return bag(grid(12, 1), RNG.exponential(size=12), truth=RNG.integers(0, 2, 12), lesions=lesions, model=model)


def test_what_is_read_back_is_what_was_found_to_the_last_bit(tmp_path: Path) -> None:
    result = one_slide()
    scores = read_scores(saved(tmp_path, result))
    assert scores.scores.dtype == scores.attention.dtype == np.float32
    for name in ("scores", "attention", "flagged", "truth"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(result, name), err_msg=name)
    np.testing.assert_array_equal(scores.coords, grid(12, 1))
    np.testing.assert_array_equal(scores.slide, np.zeros(12))
    np.testing.assert_equal(vars(scores.lesions), vars(result.lesions))
    # attention is of the whole bag, and normalised by its average
    assert scores.attention.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(scores.normalised, scores.attention * 12, rtol=1e-6)
    assert scores.flagged.any()
    np.testing.assert_array_equal(scores.flagged, scores.normalised > 1)


def test_the_file_says_what_it_holds_in_words(tmp_path: Path) -> None:
    with h5py.File(saved(tmp_path, one_slide())) as file:
        said = dict(file.attrs)
        assert json.loads(said.pop("slides")) == [
            {"slide_id": "slide 0", "patches": 12, "pitch": 512, "tile": 512, "unit": "level-0 pixels", "mpp": 0.25}
        ]
        assert said == {
            "format": "smooth-mil-scores/1",
            "bag_id": "bag 7",
            "note": "research use only, not for diagnosis",
            "model_name": "pathology_wsi_smooth_mil",
            "model_version": "1.2.3",
            "model_sha256": "ab" * 32,
        }
        assert file["coords"].attrs["unit"] == "level-0 pixels"
        wanted = "attention × number of patches: 1 = the average of the slide"
        assert file["normalised"].attrs["normalisation"] == wanted


def test_what_is_not_known_is_not_there_and_micrometres_keep_their_fractions(tmp_path: Path) -> None:
    coords = grid(3, 1) * 0.4375
    path = saved(tmp_path, bag(coords, [1.0, 2.0, 3.0], header(3, unit="micrometres", mpp=None)))
    with h5py.File(path) as file:
        assert sorted(file) == ["attention", "coords", "flagged", "normalised", "scores"]
        assert not [name for name in file.attrs if name.startswith("model")]
        assert file["coords"].attrs["unit"] == "micrometres"
    scores = read_scores(path)
    assert (scores.truth, scores.lesions) == (None, None)
    np.testing.assert_array_equal(scores.coords, coords)


def test_patches_of_several_slides_say_which_one_they_are_of(tmp_path: Path) -> None:
    result = bag([grid(3, 1), grid(0, 1), grid(2, 1)], np.arange(1.0, 6))
    path = saved(tmp_path, result)
    assert read_scores(path).slide.tolist() == [0, 0, 0, 2, 2]
    with h5py.File(path) as file:
        assert [slide["patches"] for slide in json.loads(file.attrs["slides"])] == [3, 0, 2]
    assert normalisation(result) == "attention × number of patches: 1 = the average of all 3 slides of the bag"
    slots = dataclasses.replace(result, slots=100)
    assert normalisation(slots) == "attention × 100 slots: 1 = the average of 100 slots"


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    result = one_slide()
    first, second = saved(tmp_path / "a", result), saved(tmp_path / "b", result)
    assert first.read_bytes() == second.read_bytes()
    with h5py.File(first) as file:
        assert [h5py.h5g.get_objinfo(file.id, name.encode()).mtime for name in file] == [0] * len(file)  # no hour


@pytest.mark.parametrize("content", [b"half a file", None])
def test_what_cannot_be_read_says_so_in_a_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scores.h5"
    path.write_bytes(content or b"")
    if content is None:
        with h5py.File(path, "w") as file:
            file["coords"] = grid(1, 1)
    with pytest.raises(InputError, match=r"scores.h5 holds no scores that can be read: run inference again$"):
        read_scores(path)
