# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A head CT in Hounsfield units gives no doubt, whatever its size; what is none does, in words that say why."""

from collections.abc import Callable

import numpy as np
import pytest

from scripts.ct.plausible import doubt_of_head_ct, few_slices
from scripts.ct.reader import load_series, pixel_mm
from tests.ct.series import HEAD, HEAD_PIXEL_MM, phantom
from tests.shared_data import shared_data

POSITIONS = np.arange(10) * 5.0
HARDLY = "hardly a head CT in Hounsfield units: "
NO_AIR = "no value of the middle slice is below {}, where air is near -1000"
NO_BRAIN = "0.0% of what is not air in the middle slice is between 0 and 80 HU, where brain is expected"


def doubt(middle: np.ndarray = HEAD, scale: float = 1.0, positions: np.ndarray = POSITIONS) -> str:
    return doubt_of_head_ct(middle, [scale * side for side in HEAD_PIXEL_MM], positions)


def test_a_head_gives_no_doubt_be_it_small_or_large_cut_close_or_scanned_in_part() -> None:
    for scale in (0.75, 1, 2):
        assert doubt(scale=scale) == ""
    assert doubt(phantom(1, 32)[0][3:-3, 3:-3], 0.5) == ""  # whose corners alone are air
    for scale in (0.75, 1):  # of 47 and 83 cm² in a field of half a metre
        assert doubt(np.pad(HEAD, ((17, 17), (23, 23)), constant_values=-1000), scale) == ""
    assert doubt(positions=np.arange(60) * 5.0) == ""
    assert doubt(positions=np.arange(3) * 5.0) == ""  # too few to have a length
    assert doubt(positions=np.zeros(1)) == ""


OTHERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "MR": (lambda head: (head + 1000) * 0.5, f"{NO_AIR.format(0)}, and {NO_BRAIN}"),
    "a picture of 0 to 255": (lambda head: np.clip(head, 0, 255), NO_AIR.format(0)),
    "values as stored": (lambda head: head + 1024, NO_AIR.format(24)),
    "tenths of HU": (lambda head: head * 10, NO_BRAIN),
    "HU / 1000": (lambda head: head / 1000, NO_AIR.format(-1)),
    "a mask": (lambda head: head == 30, NO_AIR.format(0)),
    "HU less 1024": (lambda head: np.maximum(head - 1024.0, -1024), "the middle slice shows 28.8 cm² of a body, where"),
    "tissue alone": (lambda head: np.full_like(head, 40), NO_AIR.format(40)),
    "air alone": (lambda head: np.full_like(head, -1000), "the middle slice shows 0 cm² of a body, where a head has"),
    "inside out": (lambda head: -head, "1000 HU at the border of the middle slice, where air is expected"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_in_no_hounsfield_units_is_doubted_with_the_reason(what: str) -> None:
    change, why = OTHERS[what]
    assert doubt(change(HEAD)).startswith(HARDLY + why)


def test_what_has_no_heads_size_is_doubted() -> None:
    """An animal, a chest, pixels in another unit; a stack as long as a body, or of a bone of the ear."""
    assert doubt(scale=0.4) == f"{HARDLY}the middle slice shows 13.3 cm² of a body, where a head has 40 to 400"
    assert doubt(scale=3) == f"{HARDLY}the middle slice shows 749 cm² of a body, where a head has 40 to 400"
    assert doubt(positions=np.arange(80) * 5.0) == f"{HARDLY}it is 400 mm long, where a head has 30 to 300"
    assert doubt(positions=np.arange(30) * 0.6) == f"{HARDLY}it is 18 mm long, where a head has 30 to 300"


def test_fewer_than_eight_slices_are_a_part_of_a_head() -> None:
    assert [few_slices(count) for count in (1, 7, 8, 400)] == [
        ["1 slice, few for a head"], ["7 slices, few for a head"], [], [],
    ]  # fmt: skip


def test_a_real_head_gives_no_doubt() -> None:
    series = load_series(shared_data("ct_dicom/ge_head_tilt18"))
    for index in range(8, 22):  # whichever is the middle
        middle, mm = series.array[..., index], pixel_mm(series.affine)
        assert doubt_of_head_ct(middle, mm, series.positions_mm) == ""
        assert "is between 0 and 80 HU" in doubt_of_head_ct(middle * 10, mm, series.positions_mm)
