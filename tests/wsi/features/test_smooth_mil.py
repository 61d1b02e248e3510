# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A feature file of our own form round trips, is as documented, and says what is wrong with it."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.wsi.features.files import read_features, read_own_header
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from tests.wsi.foreign_features import tissue, write_uni2h

PITCH = 513.026  # 256 pixels at 0.5 of a slide with 0.2495


def some_slide(patches: int = 7, dimension: int = 4, seed: int = 0, dtype: type = np.float16) -> PatchFeatures:
    rng = np.random.default_rng(seed)
    cells = np.stack(np.divmod(rng.choice(400, patches, replace=False), 20), axis=1) + np.array([3, 11])
    return PatchFeatures(
        features=rng.normal(size=(patches, dimension)).astype(dtype),
        coords=Level0Coords(np.rint(cells * PITCH).astype(np.int64).reshape(-1, 2)),
        pitch=Level0Pixels(PITCH),
        tile=Level0Pixels(PITCH),
        mpp=MicronsPerPixel(0.2495),
        encoder="mean colour",
        slide_id=f"slide {seed}",
        slide_size=(20_000, 30_000),
        thumbnail=rng.integers(0, 256, (30, 20, 3), dtype=np.uint8),
        thumbnail_downsample=1000.0,
        origin=(70, 900),
    )


UNKNOWN = dataclasses.replace(some_slide(0, dtype=np.float32), mpp=None, thumbnail=None, thumbnail_downsample=None)


@pytest.mark.parametrize("slide", [some_slide(), some_slide(dtype=np.float32), UNKNOWN])
def test_what_is_written_is_read_and_what_is_unknown_stays_unknown(tmp_path: Path, slide: PatchFeatures) -> None:
    write_features(tmp_path / "a.h5", slide)
    back = read_features(tmp_path / "a.h5")
    for field in dataclasses.fields(PatchFeatures):
        before, after = getattr(slide, field.name), getattr(back, field.name)
        np.testing.assert_array_equal(before, after)
        assert type(before) is type(after), field.name
    assert back.features.dtype == slide.features.dtype
    assert read_own_header(tmp_path / "a.h5").patches == len(slide.features)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file.attrs["bounds_x"], file.attrs["bounds_y"]  # as an earlier version
    assert read_own_header(tmp_path / "a.h5").origin == (0, 0)


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    slide = some_slide()
    write_features(tmp_path / "a.h5", slide)
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == {"features", "coords", "thumbnail"}
        assert dict(file.attrs) == {
            "format": "smooth-mil-features/1",
            "slide_id": "slide 0",
            "encoder": "mean colour",
            "pitch_level0": PITCH,
            "tile_level0": PITCH,
            "mpp": 0.2495,
            "slide_width": 20_000,
            "slide_height": 30_000,
            "bounds_x": 70,
            "bounds_y": 900,
            "thumbnail_downsample": 1000.0,
        }


def test_what_is_malformed_or_fails_to_be_written_leaves_the_finished_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, slide = tmp_path / "a.h5", some_slide()
    write_features(path, slide)
    before = path.read_bytes()
    for spoilt, problem in (
        ({"features": slide.features * np.nan}, "NaN"),
        (
            {"features": slide.features.astype(int)},
            r"features int64 \(7, 4\) and coords int64 \(7, 2\) should be float32",
        ),
        ({"coords": slide.coords[1:]}, r"coords int64 \(6, 2\) should be .* \(file .*a.h5\)"),
    ):
        with pytest.raises(InputError, match=problem):
            write_features(path, dataclasses.replace(slide, **spoilt))
    monkeypatch.setattr(h5py.File, "create_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_features(path, some_slide(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features", None, "holds no dataset `features`"),
        ("coords", np.zeros((6, 2), int), r"features \(7, 4\) and coords \(6, 2\) should be"),
        ("coords", np.zeros((7, 2)), "coords float64 should be integers"),
        ("features", np.full((7, 4), np.nan, np.float32), "features hold NaN or infinite values"),
        ("format", "other/2", "is not of the format smooth-mil-features/1"),
        ("mpp", None, "lacks the root attribute `mpp`"),
        ("pitch_level0", 0.0, "states no pitch_level0 or tile_level0 above 0"),
    ],
)
def test_a_spoilt_file_is_named_in_one_line(tmp_path: Path, name: str, value: object, message: str) -> None:
    path = tmp_path / "a.h5"
    write_features(path, some_slide())
    with h5py.File(path, "a") as file:
        owner = file if name in file else file.attrs
        del owner[name]
        if value is not None:
            owner[name] = value
    with pytest.raises(InputError, match=message) as caught:
        read_features(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "extract" in str(caught.value)


def test_another_form_is_not_our_own(tmp_path: Path) -> None:
    path = write_uni2h(tmp_path, "a", tissue())
    for read in (read_features, read_own_header):
        with pytest.raises(InputError, match=r"a.h5 is of UNI2-h, not of the format smooth-mil-features/1"):
            read(path)
