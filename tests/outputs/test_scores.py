# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""scores.h5: what it says, in which units, and that nothing is lost on the way back."""

import dataclasses
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.core.record import BagResult, Lesions, Model
from scripts.outputs.scores import SaveScoresd, normalisation, read_scores
from tests.wsi.outputs.slide_results import bag, grid, header

RNG = np.random.default_rng(0)


def saved(folder: Path, result: BagResult) -> Path:
    data: dict[Hashable, Any] = {"result": result, "other": 1}
    assert SaveScoresd(str(folder))(data) == data
    return folder / result.bag_id / "scores.h5"


def one_slide(patches: int = 12) -> BagResult:
    return bag(
        grid(patches, 1),
        RNG.exponential(size=patches),
        truth=RNG.integers(0, 2, patches),
        lesions=Lesions(RNG.integers(0, 4, patches), 3, (2,)),
        model=Model("pathology_wsi_smooth_mil", "1.2.3", "ab" * 32),
    )


def test_what_is_read_back_is_what_was_found_to_the_last_bit(tmp_path: Path) -> None:
    result = one_slide()
    scores = read_scores(saved(tmp_path, result))
    assert scores.scores.dtype == scores.attention.dtype == np.float32
    for name in ("scores", "attention", "flagged", "truth"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(result, name), err_msg=name)
    np.testing.assert_array_equal(scores.coords, grid(12, 1))
    np.testing.assert_array_equal(scores.slide, np.zeros(12))
    np.testing.assert_equal(dataclasses.asdict(scores.lesions), dataclasses.asdict(result.lesions))
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


def test_what_is_not_known_is_not_there(tmp_path: Path) -> None:
    path = saved(tmp_path, bag(grid(3, 1), [1.0, 2.0, 3.0]))
    with h5py.File(path) as file:
        assert sorted(file) == ["attention", "coords", "flagged", "normalised", "scores"]
        assert not [name for name in file.attrs if name.startswith("model")]
    assert (read_scores(path).truth, read_scores(path).lesions) == (None, None)


def test_patches_of_several_slides_say_which_one_they_are_of(tmp_path: Path) -> None:
    result = bag([grid(3, 1), grid(0, 1), grid(2, 1)], np.arange(1.0, 6))
    path = saved(tmp_path, result)
    assert read_scores(path).slide.tolist() == [0, 0, 0, 2, 2]
    with h5py.File(path) as file:
        assert [slide["patches"] for slide in json.loads(file.attrs["slides"])] == [3, 0, 2]
    assert normalisation(result) == "attention × number of patches: 1 = the average of all 3 slides of the bag"
    slots = dataclasses.replace(result, slots=100)
    assert normalisation(slots) == "attention × 100 slots: 1 = the average of 100 slots"


def test_micrometres_are_called_so_and_keep_their_fractions(tmp_path: Path) -> None:
    coords = grid(3, 2) * 0.4375
    path = saved(tmp_path, bag(coords, np.ones(6), header(6, unit="micrometres", mpp=None)))
    np.testing.assert_array_equal(read_scores(path).coords, coords)
    with h5py.File(path) as file:
        assert file["coords"].attrs["unit"] == "micrometres"


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
