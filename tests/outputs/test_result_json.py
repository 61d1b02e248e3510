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
from scripts.core.lesions import Lesions
from scripts.core.record import BagResult, Classes, Model
from scripts.outputs.result_json import SaveResultd, from_json
from scripts.outputs.scores import SaveScoresd, normalisation, read_scores
from scripts.wsi.outputs.view import slides_of
from tests.outputs.results import COHORT, result, strict_json, told
from tests.wsi.outputs.slide_results import bag, grid, header


def test_result_json_says_all_there_is_to_say(tmp_path: Path) -> None:
    data: dict[Hashable, Any] = {"bag_result": COHORT[0], "other": 1}
    assert SaveResultd(str(tmp_path))(data) == data
    written = strict_json(tmp_path / "d" / "result.json")
    instances = written.pop("instances")
    assert written == {
        "bag_id": "d",
        "source": "scans/d",
        "called": "positive",
        "positive": True,
        "label_set": None,
        "probability": 0.9,
        "logits": [],
        "threshold": 0.5,
        "threshold_origin": "",
        "label": 1,
        "label_name": "positive",
        "flagged": 1,
        "score_name": "attention",
        "score_smoothing": 0.0,
        "flagged_above": "attention 1/3, in a positive bag",
        "flagged_above_score": None,
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
        label_set=("negative", "positive") if truth else (),
        about={"tilt_degrees": 18.5, "warnings": ["a gap"]},
        slots=57,
    )
    SaveResultd(str(tmp_path))({"bag_result": given})
    written = strict_json(tmp_path / "x" / "result.json")
    assert_same(given, from_json(written, tmp_path / "x"))
    # what is not known is not claimed
    assert [("truth" in row, row["flagged"]) for row in written["instances"]] == [(truth is not None, False)] * 2
    assert written["flagged_above"].startswith("attention 1/57")


@pytest.mark.parametrize("of_patches", [False, True])
@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ({}, "own logit 0.405465 (what a bag needs: probability 0.5), in a positive bag"),
        (
            {"score_smoothing": 0.5},
            "smoothed (α 0.5) own logit 0.405465 (what a bag needs: probability 0.5), in a positive bag",
        ),
        (
            {"score_name": "evidence", "flag_above": 1 / 3},
            "evidence 0.333333 (an equal share of what the bag needs: probability 0.5), in a positive bag",
        ),
        ({"score_name": "attention × probability", "flag_above": None}, "attention 1/12, in a positive bag"),
    ],
)
def test_every_score_is_read_back_with_what_is_flagged_by_it(
    tmp_path: Path, more: dict[str, Any], rule: str, of_patches: bool
) -> None:
    plain = (
        bag(grid(12, 1), RNG.exponential(size=12)) if of_patches else result("x", 0.9, RNG.normal(size=12).tolist(), 1)
    )
    given = told(plain, **more)
    if of_patches:
        SaveScoresd(str(tmp_path))({"bag_result": given})
    SaveResultd(str(tmp_path))({"bag_result": given})
    folder = tmp_path / given.bag_id
    written = strict_json(folder / "result.json")
    assert written["flagged_above"].startswith(rule)
    back = from_json(written, folder)
    assert_same(given, back)
    assert 0 < given.flagged.sum() < 12
    np.testing.assert_array_equal(back.flagged, given.flagged)
    if of_patches:
        assert read_scores(folder / "scores.h5").score_name == given.score_name
        with h5py.File(folder / "scores.h5") as file:
            assert file["scores"].attrs["flagged_above"] == given.flag_rule
    else:
        names = ("score", "attention", "attention_logit", "evidence", "instance_logit", "leave_one_out", "flagged")
        assert all(name in written["instances"][0] for name in names)


def test_what_an_earlier_version_left_is_read_as_flagged_by_attention(tmp_path: Path) -> None:
    """Without the names of 0.7.0, and scores.h5 in its first form."""
    for one in (COHORT[0], bag(grid(4, 1), [1.0, 2.0, 3.0, 4.0])):
        folder = tmp_path / one.bag_id
        SaveResultd(str(tmp_path))({"bag_result": one})
        written = strict_json(folder / "result.json")
        for name in ("score_name", "score_smoothing", "flagged_above_score"):
            del written[name]
        if written["instances"] == "scores.h5":
            with h5py.File(saved(tmp_path, one), "r+") as file:
                file.attrs["format"] = "smooth-mil-scores/1"
                for name in ("name", "smoothing", "flagged_above"):
                    del file["scores"].attrs[name]
        back = from_json(written, folder)
        assert_same(dataclasses.replace(one, attention_logits=one.scores), back)
        np.testing.assert_array_equal(back.flagged, one.flagged)


def assert_same(given: BagResult, back: BagResult) -> None:
    one, other = (
        {**vars(each), "instances": list(each.instances), "lesions": each.lesions and vars(each.lesions)}
        for each in (given, back)
    )
    np.testing.assert_equal(other, one)
    kinds = [[value.dtype.kind for value in each.values() if isinstance(value, np.ndarray)] for each in (one, other)]
    assert kinds[0] == kinds[1]


def test_a_slide_of_several_classes_is_read_back_with_its_patches(tmp_path: Path) -> None:
    """Its patches lie in scores.h5, of which result.json says the name."""
    about = header(3, "s", pitch=256, mpp=None, slide_size=(1024, 512), origin=(0, 0))
    given = bag(
        np.array([[0, 0], [256, 0], [512, 256]]),
        [3.0, 2.0, 1.0],
        about,
        label=2,
        truth=np.array([0, 1, 1]),
        lesions=Lesions(np.array([0, 1, 2]), 2, (2,)),
        classes=Classes(("N", "FEA", "DCIS"), np.array([0.1, 0.3, 0.6]), ("benign", "atypical", "malignant"), "N"),
    )
    SaveScoresd(str(tmp_path))({"bag_result": given})
    SaveResultd(str(tmp_path))({"bag_result": given})
    written = strict_json(tmp_path / "bag 7" / "result.json")
    assert written["instances"] == "scores.h5"
    assert (written["called"], written["positive"]) == ("DCIS", True)
    assert written["classes"]["probabilities"] == pytest.approx({"N": 0.1, "FEA": 0.3, "DCIS": 0.6})
    groups = written["classes"]["probabilities_of_groups"]
    assert groups == pytest.approx({"benign": 0.1, "atypical": 0.3, "malignant": 0.6})
    back = from_json(written, tmp_path / "bag 7")
    assert_same(given, back)
    assert [slide.header for slide in slides_of(back)] == [about]


RNG = np.random.default_rng(0)


def saved(folder: Path, result: BagResult) -> Path:
    data: dict[Hashable, Any] = {"bag_result": result, "other": 1}
    assert SaveScoresd(str(folder))(data) == data
    return folder / result.bag_id / "scores.h5"


def test_scores_are_read_back_to_the_last_bit_explained_in_words_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    model, lesions = Model("pathology_wsi_smooth_mil", "1.2.3", "ab" * 32), Lesions(RNG.integers(0, 4, 12), 3, (2,))
    attention, truth = RNG.exponential(size=12), RNG.integers(0, 2, 12)
    result = bag(grid(12, 1), attention, truth=truth, lesions=lesions, model=model)
    path = saved(tmp_path, result)
    scores = read_scores(path)
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
    assert path.read_bytes() == saved(tmp_path / "again", result).read_bytes()
    with h5py.File(path) as file:
        assert [h5py.h5g.get_objinfo(file.id, name.encode()).mtime for name in file] == [0] * len(file)  # no hour
        said = dict(file.attrs)
        assert json.loads(said.pop("slides")) == [
            {"slide_id": "slide 0", "patches": 12, "pitch": 512, "tile": 512, "unit": "level-0 pixels", "mpp": 0.25}
        ]
        assert said == {
            "format": "smooth-mil-scores/2",
            "bag_id": "bag 7",
            "note": "research use only, not for diagnosis",
            "model_name": "pathology_wsi_smooth_mil",
            "model_version": "1.2.3",
            "model_sha256": "ab" * 32,
            "model_trained_on": "",
        }
        assert file["coords"].attrs["unit"] == "level-0 pixels"
        assert file["normalised"].attrs["normalisation"] == normalisation(result)


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
    assert normalisation(bag(grid(3, 1), np.ones(3))).endswith(" patches: 1 = the average of the slide")
    slots = dataclasses.replace(result, slots=100)
    assert normalisation(slots) == "attention × 100 slots: 1 = the average of 100 slots"


@pytest.mark.parametrize("content", [b"half a file", None])
def test_what_cannot_be_read_says_so_in_a_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scores.h5"
    path.write_bytes(content or b"")
    if content is None:
        with h5py.File(path, "w") as file:
            file["coords"] = grid(1, 1)
    with pytest.raises(InputError, match=r"scores.h5 holds no scores that can be read: run inference again$"):
        read_scores(path)
