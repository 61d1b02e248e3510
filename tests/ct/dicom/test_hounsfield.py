# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataelem import DataElement

from scripts.core.errors import InputError
from scripts.ct.dicom.hounsfield import INVERTED, UNWRAPPED
from scripts.ct.reader import Series, load_series
from tests.ct.series import phantom, ramp, write_series


def shows(series: Series, hounsfield: np.ndarray) -> None:
    """hounsfield: [slices, rows, columns]."""
    np.testing.assert_array_equal(series.array, hounsfield.transpose(2, 1, 0))


@pytest.mark.parametrize("implicit", [False, True])
def test_rescale_gives_hounsfield_units(tmp_path: Path, implicit: bool) -> None:
    write_series(tmp_path, ramp(3), RescaleSlope=2, RescaleIntercept=-100, implicit=implicit)
    array = load_series(tmp_path).array
    assert array.dtype == np.float32
    assert array.shape == (8, 6, 3)  # columns, rows, slices
    # slice 2, row 1, column 3 stores 2*48 + 1*8 + 3 = 107
    assert array[3, 1, 2] == 2 * 107 - 100


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("dtype", "stored_padding", "declared_padding", "intercept"),
    [
        (np.int16, -2000, -2000, 0),
        (np.int16, -3024, None, 0),  # padding nobody declared
        (np.int16, -2000, DataElement(0x00280120, "US", 63536), 0),  # declared unsigned, stored signed
        (np.int16, -500, DataElement(0x00280120, "US", 65036), 0),  # the same, and not below air
        (np.uint16, 5000, 5000, -1024),  # looks like bone until the header is asked
    ],
)
def test_padding_becomes_air(
    tmp_path: Path, dtype: type, stored_padding: int, declared_padding: object, intercept: int, implicit: bool
) -> None:
    stored: np.ndarray = ramp(2).astype(dtype)
    stored[:, 0, 0] = stored_padding
    write_series(tmp_path, stored, PixelPaddingValue=declared_padding, RescaleIntercept=intercept, implicit=implicit)
    array = load_series(tmp_path).array
    assert (array[0, 0] == -1024).all()
    np.testing.assert_array_equal(array[1:, 1:], stored[:, 1:, 1:].transpose(2, 1, 0) + float(intercept))


@pytest.mark.parametrize("limit", [-1990, -2010, DataElement(0x00280121, "US", 63546)])
def test_a_range_of_padding_becomes_air(tmp_path: Path, limit: object) -> None:
    stored = ramp(1) - np.int16(100)
    low, high = (-2010, -2000) if limit == -2010 else (-2000, -1990)
    stored[0, 0, :4] = [low, high, (low + high) // 2, low - 1]
    write_series(tmp_path, stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=limit, RescaleIntercept=2000)
    array = load_series(tmp_path).array
    np.testing.assert_array_equal(array[:4, 0, 0], [-1024, -1024, -1024, low - 1 + 2000])
    assert array[4, 0, 0] == stored[0, 0, 4] + 2000


@pytest.mark.parametrize("padding", ["", [1, 2]])
def test_padding_that_makes_no_sense_changes_nothing(tmp_path: Path, padding: object) -> None:
    element = DataElement(0x00280120, "US", padding)
    shows(load_series(write_series(tmp_path, ramp(2), PixelPaddingValue=element)), ramp(2))


def test_what_no_memory_holds_is_refused_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path, ramp(3))
    monkeypatch.setattr("scripts.ct.dicom.hounsfield.MAX_VOXELS", 3 * 6 * 8)
    assert load_series(tmp_path).array.size == 3 * 6 * 8
    monkeypatch.setattr("scripts.ct.dicom.hounsfield.MAX_VOXELS", 3 * 6 * 8 - 1)
    monkeypatch.setattr("numpy.empty", None)
    with pytest.raises(InputError, match=r"has 3 slices of 6 x 8, too many .*: give one head"):
        load_series(tmp_path)


# 12 bits


def wrapped(hounsfield: np.ndarray) -> np.ndarray:
    """As some files of RSNA 2019 are: HU in 12 unsigned bits, so that what is below zero comes round from above."""
    return (hounsfield % 4096).astype(np.uint16)


@pytest.mark.parametrize("intercept", [0, -1])
def test_air_that_wrapped_at_12_bits_is_air_again(tmp_path: Path, intercept: int) -> None:
    write_series(tmp_path, wrapped(phantom(3)), BitsStored=12, HighBit=11, RescaleIntercept=intercept)
    series = load_series(tmp_path)
    shows(series, phantom(3))
    assert series.warnings == [UNWRAPPED]


@pytest.mark.parametrize("tags", [{"RescaleIntercept": -1024}, {"BitsStored": 16, "HighBit": 15}])
def test_nothing_is_unwrapped_that_did_not_wrap(tmp_path: Path, tags: dict[str, Any]) -> None:
    stored = wrapped(phantom(2))
    series = load_series(write_series(tmp_path, stored, **{"BitsStored": 12, "HighBit": 11, **tags}))
    shows(series, stored.astype(float) + tags.get("RescaleIntercept", 0))
    assert series.warnings == []


@pytest.mark.parametrize("stored", [phantom(2), np.maximum(phantom(2), 0).astype(np.uint16)], ids=["signed", "no air"])
def test_12_bits_that_hold_what_they_show_stay(tmp_path: Path, stored: np.ndarray) -> None:
    windows: dict[str, Any] = {"WindowCenter": [40, 300], "WindowWidth": [80, 2000]}  # of a display, and no matter here
    series = load_series(write_series(tmp_path, stored, BitsStored=12, HighBit=11, **windows))
    shows(series, stored)
    assert series.warnings == []


# MONOCHROME1


@pytest.mark.parametrize("padding", [None, -2000])
def test_monochrome1_in_hounsfield_units_stays(tmp_path: Path, padding: int | None) -> None:
    stored = phantom(2)
    if padding:
        stored[:, :5] = padding
    series = load_series(
        write_series(tmp_path, stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=padding)
    )
    shows(series, np.maximum(stored, -1024))
    assert series.warnings == []


@pytest.mark.parametrize("padding", [None, 4000])
def test_monochrome1_that_is_stored_inverted_is_turned_back(tmp_path: Path, padding: int | None) -> None:
    stored = (4095 - (phantom(2) + 1024)).astype(np.uint16)
    shown = phantom(2)
    if padding:
        stored[:, :5], shown[:, :5] = padding, -1024
    tags: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": -1024, "PixelPaddingValue": padding}
    series = load_series(write_series(tmp_path, stored, PhotometricInterpretation="MONOCHROME1", **tags))
    shows(series, shown)
    assert series.warnings == [INVERTED]


def test_signed_monochrome1_is_turned_back_unless_neither_way_has_air_around_the_head(tmp_path: Path) -> None:
    series = load_series(write_series(tmp_path / "a", -1 - phantom(2), PhotometricInterpretation="MONOCHROME1"))
    shows(series, phantom(2))
    assert series.warnings == [INVERTED]
    bright = np.full((2, 8, 8), 100, np.int16)
    series = load_series(write_series(tmp_path / "b", bright, PhotometricInterpretation="MONOCHROME1"))
    shows(series, bright)
    assert series.warnings == []
