# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataelem import DataElement

from scripts.core.errors import InputError
from scripts.ct.dicom.hounsfield import INVERTED, UNWRAPPED
from scripts.ct.reader import load_series
from tests.ct.series import phantom, ramp, write_series

LIMITED: dict[str, Any] = {"PixelPaddingValue": -2000, "RescaleIntercept": 2000}


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("dtype", "padding", "tags"),
    [
        (np.int16, [-2000], {"PixelPaddingValue": -2000}),
        (np.int16, [-3024], {}),  # nobody declared it
        (np.int16, [-2000], {"PixelPaddingValue": DataElement(0x00280120, "US", 63536)}),
        (np.int16, [-500], {"PixelPaddingValue": DataElement(0x00280120, "US", 65036)}),  # which is not below air
        (np.uint16, [5000], {"PixelPaddingValue": 5000, "RescaleIntercept": -1024}),  # looks like bone
        (np.int16, [-2000, -1995, -1990], {**LIMITED, "PixelPaddingRangeLimit": -1990}),
        (np.int16, [-2010, -2005, -2000], {**LIMITED, "PixelPaddingRangeLimit": -2010}),
        (np.int16, [-1990], {**LIMITED, "PixelPaddingRangeLimit": DataElement(0x00280121, "US", 63546)}),
    ],
)
def test_padding_becomes_air(
    dtype: type, padding: list[int], tags: dict[str, Any], implicit: bool, tmp_path: Path
) -> None:
    stored: np.ndarray = ramp(2).astype(dtype)
    stored[:, 0, : len(padding)] = padding
    stored[:, 1, 0] = padding[0] - (11 if len(padding) == 1 else 1)  # outside of any range
    array = load_series(write_series(tmp_path, stored, implicit=implicit, **tags)).array
    shown = np.maximum(stored + float(tags.get("RescaleIntercept", 0)), -1024)
    shown[:, 0, : len(padding)] = -1024
    np.testing.assert_array_equal(array, shown.transpose(2, 1, 0))


def test_what_no_memory_holds_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, ramp(3))
    monkeypatch.setattr("scripts.ct.dicom.hounsfield.MAX_VOXELS", 3 * 6 * 8)
    assert load_series(tmp_path).array.size == 3 * 6 * 8
    monkeypatch.setattr("scripts.ct.dicom.hounsfield.MAX_VOXELS", 3 * 6 * 8 - 1)
    monkeypatch.setattr("numpy.empty", None)
    with pytest.raises(InputError, match=r"has 3 slices of 6 x 8, too many .*: give one head"):
        load_series(tmp_path)


HEAD = phantom(2)
WRAPPED = (HEAD % 4096).astype(np.uint16)  # as in some files of RSNA 2019: what is below zero comes round from above
NO_AIR = np.maximum(HEAD, 0).astype(np.uint16)
INVERSE = (4095 - (HEAD + 1024)).astype(np.uint16)
BRIGHT = np.full((2, 8, 8), 100, np.int16)
BITS_12: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
INVERTED_12: dict[str, Any] = {**BITS_12, "RescaleIntercept": -1024, "PhotometricInterpretation": "MONOCHROME1"}
MONOCHROME1: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1"}


def padded(array: np.ndarray, value: int) -> np.ndarray:
    array = array.copy()
    array[:, :5] = value
    return array


@pytest.mark.parametrize(
    ("stored", "tags", "shown", "warnings"),
    [
        (ramp(3), {"RescaleSlope": 2, "RescaleIntercept": -100}, 2.0 * ramp(3) - 100, []),
        (HEAD, {"PixelPaddingValue": DataElement(0x00280120, "US", [1, 2])}, HEAD, []),  # which makes no sense
        (WRAPPED, BITS_12, HEAD, [UNWRAPPED]),
        (WRAPPED, {**BITS_12, "RescaleIntercept": -1}, HEAD, [UNWRAPPED]),
        (WRAPPED, {**BITS_12, "RescaleIntercept": -1024}, WRAPPED - 1024.0, []),
        (WRAPPED, {}, WRAPPED, []),
        (HEAD, {**BITS_12, "WindowCenter": [40, 300], "WindowWidth": [80, 2000]}, HEAD, []),  # of a display, no matter
        (NO_AIR, BITS_12, NO_AIR, []),
        (HEAD, MONOCHROME1, HEAD, []),
        (padded(HEAD, -2000), {**MONOCHROME1, "PixelPaddingValue": -2000}, padded(HEAD, -1024), []),
        (INVERSE, INVERTED_12, HEAD, [INVERTED]),
        (padded(INVERSE, 4000), {**INVERTED_12, "PixelPaddingValue": 4000}, padded(HEAD, -1024), [INVERTED]),
        (-1 - HEAD, MONOCHROME1, HEAD, [INVERTED]),
        (BRIGHT, MONOCHROME1, BRIGHT, []),  # neither way has air around the head
    ],
)
def test_values_are_hounsfield_units_and_repaired_if_they_wrapped_or_are_inverted(
    stored: np.ndarray, tags: dict[str, Any], shown: np.ndarray, warnings: list[str], tmp_path: Path
) -> None:
    series = load_series(write_series(tmp_path, stored, **tags))
    np.testing.assert_array_equal(series.array, shown.transpose(2, 1, 0))
    assert (str(series.array.dtype), series.warnings) == ("float32", warnings)
