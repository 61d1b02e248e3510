# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from scripts.ct.dicom.headers import read_headers
from scripts.ct.doctor import examine_dicom, examine_volume
from scripts.doctor.findings import Level, ScanFinding
from tests.ct.series import phantom, tilted, write_enhanced, write_slice
from tests.ct.studies import HEAD, write_series
from tests.shared_data import shared_data

LOOK = "it is read as it is; look at it, and mend or export it again where that is wrong"


def examine(path: Path, **bag: Any) -> ScanFinding:
    headers, rejected = read_headers(path)
    return examine_dicom({"bag_id": "x", **bag}, headers, rejected)


def test_a_good_scan_is_described(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=12, step=4.5, numbers=range(1, 13))
    assert examine(tmp_path) == ScanFinding(
        "x",
        Level.PASS,
        "12 slices of 16 x 16, spacing 4.50 mm, tilt 0.0 degrees, InstanceNumber ascending, Explicit VR Little Endian",
        slices=12,
    )


def test_tilt_syntax_and_size_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", ImageOrientationPatient=list(tilted(12)), implicit=True, pixels=phantom(1, 20)[0])
    text = examine(tmp_path).text
    assert text.startswith("10 slices of 20 x 20, spacing 5.00 mm, tilt 12.0 degrees, ")
    assert text.endswith(", Implicit VR Little Endian")


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        (None, "missing"),
        (range(10), "ascending"),
        (range(10, 0, -1), "descending"),
        ([1, 3, 2, 4, 5, 6, 7, 8, 9, 10], "out of order"),
        ([1] * 10, "out of order"),
    ],
)
def test_how_instance_numbers_run_is_told(tmp_path: Path, numbers: Any, told: str) -> None:
    write_series(tmp_path, "1.1", numbers=numbers)
    finding = examine(tmp_path)
    assert (finding.level, f"InstanceNumber {told}" in finding.text) == (Level.PASS, True)


def test_what_is_set_aside_is_told_with_its_reason(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", SeriesNumber=2)
    write_series(tmp_path, "1.2", SeriesNumber=3, ConvolutionKernel="BONE")
    write_series(tmp_path, "1.3", SeriesNumber=1, count=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    finding = examine(tmp_path)
    assert finding.level == Level.PASS
    assert "; set aside series 1 (1 slice): localizer, " in finding.text
    assert "series 3 (10 slices): bone kernel BONE" in finding.text


def test_gaps_and_double_slices_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=12)
    (tmp_path / "1.1_006.dcm").unlink()
    write_slice(
        tmp_path / "more.dcm", HEAD, SOPInstanceUID="1.1.99", SeriesInstanceUID="1.1", StudyInstanceUID="1.9",
        ImagePositionPatient=[-30.0, -40.0, 15.0], ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], PatientID="P1",
    )  # fmt: skip
    finding = examine(tmp_path)
    assert finding == ScanFinding(
        "x",
        Level.WARN,
        "1 slice at the position of another left out; the slices are unevenly spaced, 5.00 to 10.00 mm; "
        "10.00 mm between slices 6 and 7, where 5.00 mm is usual: 1 slice may be missing "
        "(11 slices of 16 x 16, spacing 5.00 to 10.00 mm, tilt 0.0 degrees, InstanceNumber missing, "
        "Explicit VR Little Endian)",
        LOOK,
        11,
    )


def test_few_slices_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=4)
    finding = examine(tmp_path)
    assert (finding.level, finding.text.split(" (")[0]) == (Level.WARN, "few slices for a head")


@pytest.mark.parametrize(
    ("pixels", "remarks"),
    [
        (
            HEAD + np.int16(1124),
            ["124 HU at the border of the middle slice, where air is expected", "0.0% of the middle slice is"],
        ),
        (
            np.full((16, 16), -1000, np.int16),
            ["0.0% of the middle slice is between 0 and 80 HU, where brain is expected"],
        ),
        (np.full((16, 16), 40, np.int16), ["40 HU at the border of the middle slice, where air is expected"]),
    ],
)
def test_hounsfield_units_that_cannot_be_are_told(tmp_path: Path, pixels: np.ndarray, remarks: list[str]) -> None:
    write_series(tmp_path, "1.1", pixels=pixels)
    finding = examine(tmp_path)
    assert (finding.level, finding.fix) == (Level.WARN, LOOK)
    told = finding.text.split(" (10 slices")[0].split("; ")
    assert len(told) == len(remarks)
    for text, wanted in zip(told, remarks, strict=True):
        assert text.startswith(wanted)


def test_values_that_had_wrapped_are_read_and_told(tmp_path: Path) -> None:
    """12 bits without an offset: 30 HU are 30, air is 3096."""
    wrapped = np.where(HEAD < 0, HEAD + 4096, HEAD).astype(np.uint16)
    write_series(tmp_path, "1.1", pixels=wrapped, BitsStored=12, HighBit=11)
    finding = examine(tmp_path)
    assert finding.level == Level.WARN
    assert finding.text.startswith("values that had wrapped at 12 bits are unwrapped (10 slices")


def test_a_slice_that_is_cut_short_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1")
    middle = tmp_path / "1.1_005.dcm"
    middle.write_bytes(middle.read_bytes()[:-100])
    found = examine(tmp_path)
    assert found.level is Level.WARN
    assert "1.1_005.dcm holds no complete image" in found.text


def test_a_damaged_compressed_slice_fails_with_its_syntax(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1")
    dataset = pydicom.dcmread(tmp_path / "1.1_005.dcm")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"no such image "])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    if pydicom.__version__ < "3":
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.save_as(tmp_path / "1.1_005.dcm")
    text = examine(tmp_path).text
    assert text == (
        "the pixels of the middle slice, 1.1_005.dcm (JPEG 2000 Image Compression (Lossless Only)), cannot be decoded"
    )


def test_files_that_hold_nothing_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=19)
    (tmp_path / "1.1_000.dcm").write_bytes(b"")
    finding = examine(tmp_path)
    assert (finding.level, finding.text.split(" (18")[0]) == (Level.WARN, "1.1_000.dcm holds no complete image")
    for index in (1, 2):
        (tmp_path / f"1.1_{index:03d}.dcm").write_bytes(b"")
    assert examine(tmp_path) == ScanFinding(
        "x", Level.FAIL, "1.1_000.dcm holds no complete image, one of 3 such files", "copy the scan again"
    )
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    assert examine(tmp_path) == ScanFinding(
        "x",
        Level.FAIL,
        "no images; 1.1_000.dcm holds no complete image, one of 19 such files",
        "give the folder that holds the scan",
    )


def test_two_studies_and_no_ct_fail(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.1", Modality="MR")
    finding = examine(tmp_path)
    assert (finding.level, finding.fix) == (Level.FAIL, "")
    assert finding.text == (
        "it holds no axial CT series that can be read (a series without a number (10 slices): Modality MR): give one"
    )
    write_series(tmp_path / "b", "1.2", study="1.8")
    assert examine(tmp_path) == ScanFinding("x", Level.FAIL, "2 studies", "give each a folder")


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ({f"1.1.{k + 1}": 0 for k in range(10)}, 0),
        ({f"1.1.{k + 1}": 0 for k in range(8)}, 2),
        ([0] * 10, 0),
        ([0] * 13, 3),
    ],
)
def test_slice_labels_must_fit(tmp_path: Path, given: Any, lacking: int) -> None:
    write_series(tmp_path, "1.1")
    finding = examine(tmp_path, label=0, instance_label=given)
    assert (finding.level == Level.FAIL) == bool(lacking)
    if lacking:
        assert finding.text == f"instance_label does not fit {lacking} of the 10 slices"
        assert finding.fix == "label every slice, or leave instance_label out"


def test_frames_are_labelled_one_by_one(tmp_path: Path) -> None:
    stored = phantom(9)
    write_enhanced(tmp_path / "all.dcm", stored, [(0.0, 0.0, 5.0 * k) for k in range(9)], SOPInstanceUID="1.5")
    finding = examine(tmp_path, label=0, instance_label={f"1.5/{k + 1}": 0 for k in range(9)})
    assert "instance_label" not in finding.text
    finding = examine(tmp_path, label=0, instance_label={"1.5": 0})
    assert finding.text == "instance_label does not fit 9 of the 9 slices"


@pytest.mark.parametrize(
    ("label", "given", "told"),
    [
        (0, [0] * 9 + [1], "label 0, though 1 of its slices is positive"),
        (0, [0] * 8 + [1, 1], "label 0, though 2 of its slices are positive"),
        (1, [0] * 10, "label 1, though none of its slices is positive"),
        (1, [1] * 10, None),
    ],
)
def test_labels_that_contradict_each_other_are_told(
    tmp_path: Path, label: int, given: list[int], told: str | None
) -> None:
    write_series(tmp_path, "1.1")
    finding = examine(tmp_path, label=label, instance_label=given)
    assert finding.level == (Level.WARN if told else Level.PASS)
    assert finding.text.startswith(f"{told} (10 slices" if told else "10 slices")


def test_volumes_are_examined_too(tmp_path: Path) -> None:
    head = np.repeat(phantom(1, 24)[0].T[..., None], 9, axis=2).astype(np.float32)
    path = tmp_path / "v.nii.gz"
    nib.save(nib.Nifti1Image(head, np.diag([0.5, 0.5, 3.0, 1.0])), path)
    bag = {"bag_id": "v", "label": 0}
    assert examine_volume(bag, path) == ScanFinding(
        "v", Level.PASS, "9 slices of 24 x 24, spacing 3.00 mm, tilt 0.0 degrees", slices=9
    )
    assert examine_volume({**bag, "instance_label": [0] * 8}, path).text == (
        "instance_label does not fit 1 of the 9 slices"
    )
    nib.save(nib.Nifti1Image(np.clip(head, 0, 255), np.eye(4)), path)  # a picture, no HU
    finding = examine_volume(bag, path)
    assert finding.level == Level.WARN
    assert finding.text.startswith("0 HU at the border of the middle slice, where air is expected (9 slices")
    path.write_bytes(b"nothing")
    assert examine_volume(bag, path) == ScanFinding(
        "v",
        Level.FAIL,
        f"{path} cannot be read as NIfTI: it is damaged or not NIfTI, copy or convert it again",
    )


def test_the_real_tilted_scan() -> None:
    finding = examine(shared_data("ct_dicom/ge_head_tilt18"))
    assert finding.level == Level.WARN
    assert finding.text == (
        "the slices are unevenly spaced, 1.14 to 7.38 mm (28 slices of 512 x 512, spacing 1.14 to 7.38 mm, "
        "tilt 18.5 degrees, InstanceNumber ascending, Explicit VR Little Endian)"
    )
