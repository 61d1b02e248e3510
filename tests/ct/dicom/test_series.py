# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.ct.dicom.files import ImageFile
from scripts.ct.dicom.headers import Header
from scripts.ct.dicom.series import Choice, by_study, choose_series, positions_mm, spacings_mm
from tests.ct.series import AXIAL, tilted

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


USUAL_VALUES: list[Any] = [  # of a slice as any scanner writes it
    *(ImageFile(Path("scan") / "slice.dcm"), None, "p", "1.2", "1.2.3", "", "CT", ("ORIGINAL", "PRIMARY", "AXIAL")),
    *("H30s", "3", False, "HEAD", 1, 512, 512, AXIAL, (0.0, 0.0, 0.0), (0.5, 0.5), 5.0, 1.0, -1024.0, 1, None),
]
USUAL = Header(*USUAL_VALUES)


def stack(number: int = 3, count: int = 10, spacing: float = 5.0, **tags: Any) -> list[Header]:
    usual = USUAL._replace(**{"series": f"1.2.{number}", "series_number": str(number), **tags})
    own = [{"position": (0.0, 0.0, k * spacing), "sop": f"1.2.{number}.{k}", "instance": k} for k in range(count)]
    return [usual._replace(**{**each, **tags}) for each in own]


def chosen(choice: Choice) -> str:
    (number,) = {header.series_number for header in choice.headers}
    return number


def refusal(headers: list[Header], series: str | None = None) -> str:
    with pytest.raises(InputError, match=r".") as caught:
        choose_series(headers, series, where="scan7")
    message = str(caught.value)
    assert message.startswith("scan7 ")
    assert "\n" not in message
    return message


def test_a_series_that_is_no_plain_head_is_set_aside_with_the_reason() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"modality": "MR"}, "Modality MR"),
        ({"modality": ""}, "Modality missing"),
        ({"body_part": "ABDOMEN"}, "body part ABDOMEN"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "localizer"),
        ({"orientation": tilted(50)}, "not axial, 50 degrees off"),
        ({"image_type": ("DERIVED", "PRIMARY", "REFORMATTED")}, "derived or secondary"),
        ({"image_type": ("ORIGINAL", "SECONDARY")}, "derived or secondary"),
        ({"kernel": "BONEPLUS"}, "bone kernel BONEPLUS"),
        ({"contrast": True}, "contrast agent"),
        ({"samples": 3}, "in colour"),
        ({"position": None}, "no usable ImagePositionPatient"),
        ({"orientation": None}, "no usable ImageOrientationPatient"),
        ({"pixel_spacing": None}, "no usable PixelSpacing"),
    )
    for tags, reason in cases:
        other = stack(2, 28, **tags)  # which would win by its number and its slices
        for headers in (other + stack(), stack() + other):
            choice = choose_series(headers)
            assert chosen(choice) == "3"
            assert (choice.skipped, choice.warnings) == ([f"series 2 (28 slices): {reason}"], [])


SHARP = (
    *("BONE", "BONEPLUS", "BONE+", "EDGE", "LUNG", "H60s", "H70h", "Hr60f", "Hr64", "J70h\\3", "B70f", "U90u", "Qr59"),
    *("Qr69h", "FC30", "FC35", "FC52", "FC81", "D", "E", "YC", "YD", "HEAD SHARP", "bone"),
)
SOFT = (
    *("", "STANDARD", "SOFT", "STND", "STD+", "DETAIL", "H10s", "H31s", "Hr40f", "J40s\\2", "B30f", "Qr40", "Hc40"),
    *("FC21", "FC26", "FC64", "FC68", "A", "B", "C", "UA", "UB", "UC", "YA", "I31f", "BRAIN"),
)


def test_sharp_kernels_are_known_and_soft_and_unknown_ones_pass() -> None:
    for kernel in SHARP:
        choice = choose_series(stack(2, kernel=kernel) + stack(3, kernel=""))
        assert choice.skipped == [f"series 2 (10 slices): bone kernel {kernel}"]
    for kernel in SOFT:
        assert chosen(choose_series(stack(2, kernel=kernel) + stack(3, kernel="BONE"))) == "2", kernel


def test_a_second_best_series_is_read_with_a_warning_if_it_is_the_best() -> None:
    for warning, headers in (
        ("only series of another part of the body", stack(body_part="CHEST")),
        ("only series with a bone kernel", stack(kernel="H60s")),
        ("only series with a contrast agent", stack(contrast=True)),
        ("only derived or secondary series", stack(image_type=("DERIVED", "PRIMARY"))),
        ("longer than a head", stack(count=85)),
    ):
        choice = choose_series(headers)
        assert (choice.headers, choice.skipped) == (headers, [])
        assert [warning in line for line in choice.warnings] == [True]


def test_another_part_of_the_body_is_skipped_before_all_else_and_one_that_tells_nothing_passes() -> None:
    for part in ("NECK", "CSPINE", "CHESTABDPELVIS", "EXTREMITY"):
        choice = choose_series(stack(2, 30, body_part=part) + stack(3, 3, kernel="BONE", contrast=True))
        assert (chosen(choice), choice.skipped) == ("3", [f"series 2 (30 slices): body part {part}"])
    for part in ("", "HEAD", "ORBIT", "HEADNECK", "TRAUMA"):
        choice = choose_series(stack(2, 30, body_part=part) + stack(3, 29))
        assert (chosen(choice), choice.warnings) == ("2", []), part


FURTHER = "mm is further from 5 mm than series"


@pytest.mark.parametrize(
    ("headers", "best", "skipped"),
    [
        (stack(2, 85) + stack(3, 61), "3", ["2 (85 slices): 420 mm long, more than a head"]),  # 300 mm are not
        (stack(2, kernel="BONE") + stack(3, image_type=("DERIVED",)), "3", ["2 (10 slices): bone kernel BONE"]),
        (stack(2, 7) + stack(3, 8, spacing=1.0), "3", ["2 (7 slices): fewer than 8 positions"]),
        (stack(2, 3) + stack(3, 7), "3", ["2 (3 slices): fewer slices than series 3"]),
        (stack(2, 4, sop="") * 10 + stack(3), "3", ["2 (40 slices): fewer than 8 positions"]),  # perfusion
        (stack(2, spacing=1.0) + stack(3), "3", [f"2 (10 slices): its spacing of 1.00 {FURTHER} 3"]),
        (stack(2, spacing=4.0) + stack(3, spacing=7.0), "2", [f"3 (10 slices): its spacing of 7.00 {FURTHER} 2"]),
        (stack(2, spacing=2.5) + stack(3, spacing=0.6), "2", [f"3 (10 slices): its spacing of 0.60 {FURTHER} 2"]),
        (
            stack(2, 20) + stack(10, 30) + stack(9, 30),
            "9",
            ["10 (30 slices): no better than series 9", "2 (20 slices): fewer slices than series 9"],
        ),
    ],
)
def test_of_several_plain_heads_the_best_is_chosen(headers: list[Header], best: str, skipped: list[str]) -> None:
    choice = choose_series(headers)
    assert (chosen(choice), choice.skipped) == (best, [f"series {line}" for line in skipped])


def test_the_order_of_the_files_tells_nothing() -> None:
    headers = stack(2, 20, kernel="BONE") + stack(10, 30) + stack(9, 30) + stack(9, 3, rows=256, sop="x") + stack(4, 3)
    shuffled = np.random.default_rng(0).permutation(len(headers))
    assert choose_series([headers[k] for k in shuffled]) == choose_series(headers)


def test_rsna_poverty_is_enough() -> None:
    nothing: dict[str, Any] = {"acquisition": None, "instance": None, "thickness": None, "image_type": ()}
    poor = {**nothing, "kernel": "", "series_number": "", "series": "ID_5fbd"}
    headers = stack(count=30, **poor)
    choice = choose_series(headers[::-1])
    assert (choice.headers, choice.skipped, choice.warnings) == (headers, [], [])
    both = choose_series(headers + stack(count=20, **{**poor, "series": "ID_91ac"}))
    assert both.skipped == ["a series without a number (20 slices): fewer slices than a series without a number"]


def test_nothing_that_tells_who_the_patient_is_is_said() -> None:
    secret = "Doe^John\n1950"
    headers = stack(2, 28, kernel=f"BONE {secret * 9}", study=secret, sop="", series=secret) + stack(3)
    (line,) = choose_series(headers).skipped
    assert line.startswith("series 2 (28 slices): bone kernel BONE Doe")
    assert secret not in line
    assert secret not in refusal(stack(2, 28, modality=secret, series=secret))


def test_nothing_to_read_says_what_there_is() -> None:
    headers = stack(1, 2, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")) + stack(5, 30, orientation=CORONAL)
    assert refusal(headers) == (
        "scan7 holds no axial CT series that can be read (series 1 (2 slices): localizer; "
        "series 5 (30 slices): not axial, 90 degrees off): give one"
    )
    many = [header for number in range(9) for header in stack(number, modality="MR")]
    assert refusal(many).endswith("series 4 (10 slices): Modality MR; and 4 more): give one")
    assert refusal([]) == "scan7 holds no DICOM images: give the folder that holds the scan"


def test_a_series_can_be_named_by_number_or_uid_and_a_name_that_fits_none_or_two_is_refused() -> None:
    for series in ("2", "1.2.2"):
        choice = choose_series(stack(2, kernel="BONE") + stack(3) + stack(4), series)
        assert (chosen(choice), choice.warnings) == ("2", [])
        assert choice.skipped == [f"series {k} (10 slices): another series was asked for" for k in (3, 4)]
    assert refusal(stack(2) + stack(3, 7), "4") == (
        "scan7 holds no series 4: name one of series 2 (10 slices), series 3 (7 slices)"
    )
    two = stack(2) + stack(2, series="1.2.99")
    assert refusal(two, "2") == "scan7 holds 2 series of the number 2: give a SeriesInstanceUID"
    assert len(choose_series(two, "1.2.99").headers) == 10
    assert "series 2 (10 slices): not axial" in refusal(stack(2, orientation=CORONAL) + stack(3), "2")


@pytest.mark.parametrize("tags", [{"rows": 256}, {"orientation": tilted(10)}, {"pixel_spacing": (0.5, 0.4)}])
def test_slices_of_another_size_or_direction_are_set_aside(tags: dict[str, Any]) -> None:
    odd = USUAL._replace(position=(0.0, 0.0, 99.0), **tags)
    choice = choose_series([odd, odd, *stack()])
    assert choice.headers == stack()
    assert choice.skipped == ["series 3 (2 slices): another size or direction than the other 10"]
    scout = USUAL._replace(image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), orientation=CORONAL, series="1.2.3")
    assert choose_series([scout, *stack()]).skipped == ["series 3 (1 slice): localizer"]


def test_copies_are_set_aside() -> None:
    copies = [header._replace(file=ImageFile(Path("z.dcm"))) for header in stack(count=10)[:4]]
    choice = choose_series(stack() + copies)
    copied = ["series 3 (4 slices): copies of slices that are there"]
    assert (choice.headers, choice.skipped, choice.warnings) == (stack(), copied, [])
    # One UID for all slices, as careless tools that take names out write it, makes them no copies.
    assert len(choose_series(stack(sop="1.2")).headers) == 10


@pytest.mark.parametrize("number", ["", "7"])
def test_a_sharp_and_a_soft_series_without_uids_are_not_mixed(number: str) -> None:
    own: dict[str, Any] = {"series": "", "series_number": number}
    soft, sharp = stack(count=10, kernel="H30s", **own), stack(2, 40, spacing=2.0, kernel="H60s", **own)
    name = f"series {number}" if number else "a series without a number"
    for series in (None, number or None):
        choice = choose_series(sharp + soft, series)
        assert (choice.headers, choice.skipped) == (soft, [f"{name} (40 slices): bone kernel H60s"])
    one, other = stack(2, 10, series=""), stack(3, 12, spacing=4.0, series="")
    assert choose_series([each for pair in zip(other, one, strict=False) for each in pair] + other[10:]).headers == one


@pytest.mark.parametrize("kernels", [("", "H30s"), ("", "H60s"), ("H40s", "H30s")])
def test_slices_of_several_soft_kernels_or_without_any_are_one_head(kernels: tuple[str, str]) -> None:
    headers = [header._replace(kernel=kernels[k % 3 > 0]) for k, header in enumerate(stack())]
    choice = choose_series(headers)
    assert (choice.headers, choice.skipped, len(choice.warnings)) == (headers, [], int("H60s" in kernels))


@pytest.mark.parametrize("degrees", [0.0, 18.5, -25.0])
def test_slices_are_ordered_along_their_normal(degrees: float) -> None:
    normal = np.cross(tilted(degrees)[:3], tilted(degrees)[3:])
    # Each lies a little aside of the last, so that no single coordinate gives the order.
    places = [tuple(5.0 * k * normal + [3.0 * (-1) ** k, 0, 0]) for k in range(10)]
    usual = USUAL._replace(orientation=tilted(degrees))
    headers = [usual._replace(position=place, sop=str(k)) for k, place in enumerate(places)]
    choice = choose_series([headers[k] for k in (7, 3, 9, 0, 5, 1, 8, 2, 6, 4)])
    assert choice.headers == headers
    np.testing.assert_allclose(np.diff(positions_mm(choice.headers)), 5.0)
    np.testing.assert_allclose(spacings_mm(choice.headers), np.hypot(5.0, 6.0))


def test_of_two_slices_at_one_position_the_first_taken_is_kept() -> None:
    cases: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        ({"acquisition": 1, "instance": 9}, {"acquisition": None, "instance": 1}),
        ({"instance": 4}, {"instance": 5}),
        ({"instance": 4}, {"instance": None}),
        ({"file": ImageFile(Path("z") / "a.dcm")}, {"file": ImageFile(Path("b.dcm"))}),
    )
    for one, other in cases:
        pair = [USUAL._replace(sop="2", **one), USUAL._replace(sop="1", position=(0.0, 0.0, 0.004), **other)]
        rest = stack()[1:]
        for headers in (pair + rest, pair[::-1] + rest, rest + pair):
            choice = choose_series(headers)
            assert choice.headers == [pair[0], *rest]
            assert choice.warnings == ["1 slice at the position of another left out"]


def warnings_at(*heights: float) -> list[str]:
    return choose_series([USUAL._replace(position=(0.0, 0.0, z), sop=f"{z}") for z in heights]).warnings


def test_uneven_spacing_is_a_warning_and_a_gap_is_given_with_its_place_and_size() -> None:
    assert warnings_at(0, 5, 10, 15) == warnings_at(0, 4, 10, 15) == warnings_at(3) == []
    assert warnings_at(0, 4, 8, 14.2, 18) == ["the slices are unevenly spaced, 3.80 to 6.20 mm"]
    assert warnings_at(0, 5, 10, 30, 35, 40, 50) == [
        "the slices are unevenly spaced, 5.00 to 20.00 mm",
        "20.00 mm between slices 3 and 4, where 5.00 mm is usual: 3 slices may be missing",
        "10.00 mm between slices 6 and 7, where 5.00 mm is usual: 1 slice may be missing",
    ]
    heights = [*np.arange(0, 40, 4.0), *np.arange(40, 120, 8.0)]  # thin below and thick above is no gap
    assert warnings_at(*heights) == ["the slices are unevenly spaced, 4.00 to 8.00 mm"]


def test_slices_that_name_no_study_belong_to_the_only_one_that_is_named() -> None:
    unnamed, a, b = (stack(count=3, study=study) for study in ("", "a", "b"))
    assert by_study(unnamed + a + unnamed) == {"a": unnamed + a + unnamed}
    assert by_study(a + unnamed + b + a) == {"a": a + a, "": unnamed, "b": b}
    assert by_study(iter(unnamed)) == {"": unnamed}
