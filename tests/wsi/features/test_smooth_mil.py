# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A feature file of our own form round trips, is as documented, and says what is wrong with it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.core.units import Level0Pixels, MicronsPerPixel
from scripts.wsi.features.files import read_own_header
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from scripts.wsi.reader import FeatureReader
from tests.wsi.foreign_features import own_slide, tissue, write_uni2h
from tests.wsi.slide_files import read_features

SLIDE = own_slide(
    "slide 0", 7, mpp=MicronsPerPixel(0.2495), pitch=Level0Pixels(513.026), tile=Level0Pixels(513.026),
    slide_size=(20_000, 30_000), thumbnail=np.arange(1800, dtype=np.uint8).reshape(30, 20, 3),
    thumbnail_downsample=1000.0, origin=(70, 900),
)  # fmt: skip
HALF = dataclasses.replace(SLIDE, features=SLIDE.features.astype(np.float16))
NO_TISSUE: dict[str, Any] = {"features": SLIDE.features[:0], "coords": SLIDE.coords[:0]}
UNKNOWN = dataclasses.replace(SLIDE, mpp=None, thumbnail=None, thumbnail_downsample=None, **NO_TISSUE)


@pytest.mark.parametrize("slide", [SLIDE, HALF, UNKNOWN])
def test_a_file_is_as_documented_and_is_read_with_what_is_unknown(tmp_path: Path, slide: PatchFeatures) -> None:
    write_features(tmp_path / "a.h5", slide)
    back = read_features(tmp_path / "a.h5")
    for field in dataclasses.fields(PatchFeatures):
        before, after = getattr(slide, field.name), getattr(back, field.name)
        np.testing.assert_array_equal(before, after)
        assert type(before) is type(after), field.name
    assert back.features.dtype == slide.features.dtype
    assert read_own_header(tmp_path / "a.h5").patches == len(slide.features)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        assert set(file) == {"features", "coords", *(["thumbnail"] if slide.mpp else [])}
        documented = {
            "format": "smooth-mil-features/1",
            "slide_id": "slide 0",
            "encoder": "tiny",
            "pitch_level0": 513.026,
            "tile_level0": 513.026,
            "mpp": math.nan if slide.mpp is None else 0.2495,
            "slide_width": 20_000,
            "slide_height": 30_000,
            "bounds_x": 70,
            "bounds_y": 900,
            "thumbnail_downsample": math.nan if slide.mpp is None else 1000.0,
        }
        np.testing.assert_equal(dict(file.attrs), documented)
        del file.attrs["bounds_x"], file.attrs["bounds_y"]  # as an earlier version
    assert read_own_header(tmp_path / "a.h5").origin == (0, 0)


def test_a_failed_write_leaves_the_finished_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, slide = tmp_path / "a.h5", SLIDE
    write_features(path, slide)
    before = path.read_bytes()
    malformed: list[tuple[dict[str, Any], str]] = [
        ({"features": slide.features * np.nan}, "NaN"),
        (
            {"features": slide.features.astype(int)},
            r"features int64 \(7, 4\) and coords int64 \(7, 2\) should be float",
        ),
        ({"coords": slide.coords[1:]}, r"coords int64 \(6, 2\) should be .* \(file .*a.h5\)"),
    ]
    for spoilt, problem in malformed:
        with pytest.raises(InputError, match=problem):
            write_features(path, dataclasses.replace(slide, **spoilt))
    monkeypatch.setattr(h5py.File, "create_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_features(path, HALF)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features", None, "holds no dataset `features`"),
        ("coords", np.zeros((7, 2)), "coords float64 should be integers"),
        ("features", np.full((7, 4), np.nan, np.float32), "features hold NaN or infinite values"),
        ("format", "other/2", "is not of the format smooth-mil-features/1"),
        ("mpp", None, "lacks the root attribute `mpp`"),
        ("pitch_level0", 0.0, "states no pitch_level0 or tile_level0 above 0"),
    ],
)
def test_a_spoilt_file_is_named_in_one_line(tmp_path: Path, name: str, value: object, message: str) -> None:
    path = tmp_path / "a.h5"
    write_features(path, SLIDE)
    with h5py.File(path, "a") as file:
        owner = file if name in file else file.attrs
        del owner[name]
        if value is not None:
            owner[name] = value
    with pytest.raises(InputError, match=message) as caught:
        FeatureReader().get_data([str(path)])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "extract" in str(caught.value)


def test_another_form_is_not_our_own(tmp_path: Path) -> None:
    path = write_uni2h(tmp_path, "a", tissue())
    with pytest.raises(InputError, match=r"a.h5 is of UNI2-h, not of the format smooth-mil-features/1"):
        read_own_header(path)
