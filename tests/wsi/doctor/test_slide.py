# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.doctor.findings import Finding, Level
from scripts.wsi.doctor.slide import ExamOptions, examine_features, examine_slide
from tests.wsi.foreign_arrays import write_owkin
from tests.wsi.foreign_features import clam, grid, load, own, square, write, write_clam, write_stamp
from tests.wsi.slide_files import tissue, write_slide

USUAL, QUICK = ExamOptions(), ExamOptions(quick=True)
PLAIN = (
    "12 patches of 4 numbers (smooth-mil), 512 level-0 pixels apart (pitch_level0), 0.25 micrometres per pixel, "
    "4.8 of 8 neighbours"
)


def found(path: Path, options: ExamOptions = USUAL, **bag: Any) -> str:
    finding = examine_features(path, "s1", options, bag).finding
    assert finding.fix or finding.level == Level.PASS or re.search("[:;] ", finding.text)  # always what to do
    return str(finding)


def test_a_file_that_can_be_used_and_one_that_is_none(tmp_path: Path) -> None:
    examined = examine_features(own(tmp_path / "s1.h5"), "slide 1", USUAL)
    assert examined.finding == Finding(Level.PASS, PLAIN, name="slide 1", size=12)
    assert examined.header is not None
    assert (examined.header.patches, examined.header.encoder) == (12, "tiny")
    none = write(tmp_path / "none.h5", "nothing")
    assert found(none).startswith(f"FAIL  s1: {none} is not an HDF5")
    assert examine_features(none, "s1", USUAL).header is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_fail_unless_nobody_looks(tmp_path: Path, value: float) -> None:
    path = own(tmp_path / "s1.h5", patches=5000)
    with h5py.File(path, "r+") as file:
        file["features"][17, 2] = file["features"][4999, 0] = value
    assert found(path).startswith("FAIL  s1: 2 of 5000 patches hold NaN, infinite or impossible values: ")
    assert found(path, QUICK).startswith("PASS  s1: ")


FAR = np.array([[0, 0], [5000, 9000], [20000, 1000], [31000, 30000]])
PAIRS = np.array([[n * 4096 + side * 512, 0] for n in range(10) for side in (0, 1)])  # a mean degree of 1


@pytest.mark.parametrize(
    ("coords", "text"),
    [
        (grid(0), "WARN  s1: no patches, a slide without tissue: leave it out of training"),
        (grid(1), "PASS  s1: 1 patches of 4 numbers"),  # which needs no neighbour
        (FAR, "FAIL  s1: no patch has a neighbour: the pitch is wrong (4 patches of 4 numbers"),
        (PAIRS, "WARN  s1: few patches have neighbours, so the tissue is scattered or the pitch is wrong (20 patches"),
        (grid(64, 1024, 8), "WARN  s1: the pitch that the file states is not that of its patches (64 patches"),
    ],
)
def test_patches_lie_beside_each_other(tmp_path: Path, coords: np.ndarray, text: str) -> None:
    assert found(own(tmp_path / "s1.h5", len(coords), coords=coords, slide_size=(50000, 40000))).startswith(text)


@pytest.mark.parametrize("aside", [0, 40])  # pixels of 512: a lattice has one place for both
def test_patches_at_one_place_fail_as_the_run_does(tmp_path: Path, aside: int) -> None:
    twice = grid(24)
    twice[[3, 9]] = twice[2] + aside, twice[2] - aside
    path = own(tmp_path / "s1.h5", 24, coords=twice)
    assert found(path, QUICK).startswith("FAIL  s1: 2 of 24 patches lie where another lies: ")
    with pytest.raises(InputError, match="3 patches at the same place"):
        load(image=str(path))


def test_labels_of_patches_are_held_against_the_slide(tmp_path: Path) -> None:
    path, file = own(tmp_path / "s1.h5"), tmp_path / "s1.npy"

    def labelled(positive: int, label: int) -> str:
        np.save(file, np.arange(12) < positive)
        return found(path, instance_label=str(file), label=label)

    assert labelled(3, 1) == labelled(0, 0) == found(path, instance_label=[0] * 12, label=0) == f"PASS  s1: {PLAIN}"
    assert labelled(1, 0).startswith(f"WARN  s1: label 0, though 1 of its patches is positive ({PLAIN})")
    assert labelled(0, 1).startswith(f"WARN  s1: label 1, though none of its patches is positive ({PLAIN})")
    given: Any
    for given, message in (
        ([0] * 11, "instance_label has 11 numbers, 11 of them 0 or 1, for 12 patches"),
        ([0] * 11 + [2], "instance_label has 12 numbers, 11 of them 0 or 1, for 12 patches"),
        ("none.npy", "instance_label none.npy cannot be read: give a .npy with a number per patch"),
    ):
        assert found(path, instance_label=given, label=0).startswith(f"FAIL  s1: {message}")


def test_a_slide_is_read_by_openslide_with_its_scale(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s1.tif", tissue(1024, 2048), 0.5)
    text = "2048 x 1024 pixels, levels at 1, 4, generic-tiff, 0.5 micrometres per pixel"
    assert examine_slide(path) == Finding(Level.PASS, text, name="s1", size=2)
    for file, level in (
        (own(tmp_path / "s1.h5", slide_size=(2048, 1024)), Level.PASS),
        (clam(tmp_path, "s1"), Level.PASS),  # of no known size
        (own(tmp_path / "other.h5"), Level.FAIL),
    ):
        finding = examine_slide(path, examine_features(file, "s1", QUICK).header)
        assert finding.level == level
    assert finding.text.startswith("its features are of a slide of 4096 x 4096 pixels (2048 x 1024 pixels, ")
    unknown = str(examine_slide(write_slide(tmp_path / "s1.tif", tissue(512, 512), None)))
    assert re.match(r"WARN  s1: no plausible micrometres per pixel \(512 x 512 pixels, .* with --slide_mpp", unknown)


def test_a_slide_that_is_damaged_fails(tmp_path: Path) -> None:
    cut = write_slide(tmp_path / "s2.tif", tissue(512, 512), 0.5, downsamples=[1])
    content = bytearray(cut.read_bytes())
    content[len(content) // 4 : len(content) // 4 * 3] = bytes(len(content) // 4 * 2)
    cut.write_bytes(content)
    assert str(examine_slide(cut)).startswith("FAIL  s2: s2.tif is damaged (")


def test_features_that_are_the_same_for_all_patches_are_a_warning_unless_nobody_looks(tmp_path: Path) -> None:
    same = own(tmp_path / "s1.h5", patches=900, features=np.ones((900, 4), np.float32))
    assert found(same).startswith("WARN  s1: the features of all patches are the same, so that training refuses them (")
    assert found(same, QUICK).startswith("PASS  s1: ")
    few = own(tmp_path / "s2.h5", patches=15, features=np.ones((15, 4), np.float32))
    assert found(few).startswith("WARN  s1: the features of all patches are the same (")
    with h5py.File(same, "r+") as file:
        file["features"][899, 3] = 2
    assert found(same).startswith("PASS  s1: ")
    assert found(own(tmp_path / "s1.h5", patches=1)).startswith("PASS  s1: ")


def test_numbers_that_no_network_takes_fail_and_a_step_within_the_patches_of_clam_is_right(tmp_path: Path) -> None:
    path = own(tmp_path / "s1.h5", features=np.full((12, 4), 3e38, np.float32))
    assert found(path).startswith("FAIL  s1: 12 of 12 patches hold NaN, infinite or impossible values: ")
    assert found(write_clam(tmp_path, "s1", grid(64, 128, 8))).startswith(
        "PASS  s1: 64 patches of 8 numbers (CLAM), 128 "
    )
    wider = write_clam(tmp_path, "s2", grid(64, 512, 8))
    assert found(wider).startswith("WARN  s1: the pitch that the file states is not that of its patches (64 patches")


def test_an_annotation_in_pixels_and_coords_of_another_unit_fail_with_what_to_give(tmp_path: Path) -> None:
    for path, unit, way in (
        (
            write_stamp(tmp_path, "s1", grid(12, 256.0)),
            "micrometres",
            "give --slides or --slide_mpp, here and to a run",
        ),
        (write_owkin(tmp_path, "s1", grid(12, 1)), "tiles", "say what one of them is: python -m scripts adopt FOLDER"),
    ):
        line = found(path, annotation=square(tmp_path, "s1", 0, 0, 9), label=1)
        assert line.startswith(f"FAIL  s1: its annotation is in pixels and its features in {unit}: {way}")
