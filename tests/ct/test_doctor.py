# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from scripts.ct import doctor
from scripts.ct.datalist.writing import CtDatalistRequest, write_ct_datalist
from scripts.ct.dicom.headers import read_headers
from scripts.ct.doctor import examine_ct, examine_dicom, examine_volume
from scripts.doctor.findings import Finding, Level, ScanFinding
from tests.ct.rsna_cohort import write_rsna_cohort
from tests.ct.series import phantom, tilted, write_enhanced, write_slice
from tests.ct.studies import HEAD, write_series
from tests.shared_data import shared_data

LOOK = "it is read as it is; look at it, and correct or export it again where that is wrong"


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computer has a test of its own."""
    monkeypatch.setattr(
        doctor, "examine_computer", lambda output_dir, _: iter([Finding(Level.PASS, f"for {output_dir}")])
    )


def examine(path: Path, datalist: Path | None = None) -> list[str]:
    return [str(finding) for finding in examine_ct(path, datalist, Path("results"))][1:]


def cohort(folder: Path, count: int = 6, **tags: Any) -> Path:
    """s0 to s5, of a patient each, every second one positive, two in each section."""
    bags = []
    for n in range(count):
        write_series(folder / f"s{n}", f"1.{n}", study=f"1.{n}.9", **{"patient": f"P{n}", **tags})
        bags.append({"bag_id": f"s{n}", "image": f"s{n}", "label": n % 2})
    write_datalist(folder, training=bags[:2], validation=bags[2:4], test=bags[4:])
    return folder


def write_datalist(folder: Path, **sections: list[dict[str, Any]]) -> Path:
    file = folder / "datalist.json"
    file.write_text(json.dumps(sections))
    return file


def sections(folder: Path) -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = json.loads((folder / "datalist.json").read_text())
    return content


def test_scans_below_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "b", "1.1")
    write_series(tmp_path / "c", "1.2", study="1.8", Modality="MR")
    first, *scans = examine(tmp_path)
    assert first == f"PASS  {tmp_path} holds 2 scans"
    assert [scan.split(" of ")[0] for scan in scans] == [
        "PASS  a_b: 10 slices",
        "FAIL  c: it holds no axial CT series that can be read "
        "(a series without a number (10 slices): Modality MR): give one",
    ]


def test_one_scan_may_be_given(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.1")
    shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "a")
    first, scan = examine(tmp_path / "z.zip")
    assert first == f"PASS  {tmp_path / 'z.zip'} holds 1 scan"
    assert scan.startswith("PASS  z.zip: 10 slices of 16 x 16")
    assert examine(tmp_path / "a")[1].startswith("PASS  a: 10 slices of 16 x 16")


def test_a_folder_without_scans_fails(tmp_path: Path) -> None:
    assert examine(tmp_path) == [
        f"FAIL  {tmp_path} holds no scan (DICOM, NIfTI, NRRD, MetaImage): give the folder that holds the scans"
    ]


def test_a_good_cohort_passes(tmp_path: Path) -> None:
    found = examine(cohort(tmp_path))
    assert found[:4] == [
        "PASS  training: 2 scans, 1 negative, 1 positive",
        "PASS  validation: 2 scans, 1 negative, 1 positive",
        "PASS  test: 2 scans, 1 negative, 1 positive",
        "PASS  none of 6 patients and 60 slices is in two sections",
    ]
    assert [line[:19] for line in found[4:]] == [f"PASS  s{n}: 10 slices" for n in range(6)]


def test_a_datalist_may_lie_elsewhere(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cohort(tmp_path)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "mine.json"
    shutil.move(tmp_path / "datalist.json", elsewhere)
    assert len(examine(tmp_path)) == 1 + 6
    assert len(examine(tmp_path, elsewhere)) == 4 + 6


def test_the_datalist_of_a_flat_cohort_passes_in_few_lines(tmp_path: Path) -> None:
    truth = write_rsna_cohort(tmp_path, series=20, slices=12, image_size=32)
    write_ct_datalist(CtDatalistRequest(folder=tmp_path, force=True))
    found = examine(tmp_path)
    lengths = [len(scan.slices) for scan in truth[1:]]  # the first has lost its corrupt slice
    assert found[4:] == [
        f"PASS  19 scans of {min(lengths)} to {max(lengths)} slices",
        found[-1],
    ]
    assert [line[:5] for line in found] == ["PASS "] * 5 + ["WARN "]
    assert "1 slice may be missing" in found[-1]
    for scan in truth:
        assert scan.patient not in "".join(found)
        assert scan.study not in "".join(found)


def test_the_doctor_writes_nothing_and_uses_what_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort(tmp_path)
    (tmp_path / "labels.csv").write_text("scan,label\n" + "".join(f"s{n},{n % 2}\n" for n in range(6)))
    write_ct_datalist(CtDatalistRequest(folder=tmp_path, shares=(0.4, 0.3, 0.3), force=True))
    given = sections(tmp_path)
    write_datalist(tmp_path, training=given["training"])  # of the others nothing must be forgotten
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.delattr("scripts.ct.dicom.headers._read_path")  # reading a header would raise
    assert len(examine(tmp_path)) == 4 + len(given["training"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_sections_with_one_class_are_told(tmp_path: Path) -> None:
    given = sections(cohort(tmp_path))
    write_datalist(tmp_path, training=given["training"][:1], validation=given["validation"][1:], test=given["test"])
    assert examine(tmp_path)[:3] == [
        "FAIL  training: 1 scans, 1 negative, 0 positive: put scans of both classes into it",
        "WARN  validation: 1 scans, 0 negative, 1 positive: put scans of both classes into it",
        "PASS  test: 2 scans, 1 negative, 1 positive",
    ]


def test_flaws_of_the_datalist_fail(tmp_path: Path) -> None:
    given = sections(cohort(tmp_path))
    del given["training"][0]["label"]
    given["validation"][0]["image"] = "gone"
    file = write_datalist(tmp_path, **given)
    found = examine(tmp_path)
    assert found[0] == f'FAIL  {file}, "training"[0] (s0) has no "label": give 0 or 1'
    assert found[1] == (
        f'FAIL  {file}, "validation"[0] (s2): {tmp_path / "gone"} does not exist: '
        "check --dataset_dir, or make the features first"
    )
    assert found[2].startswith("PASS  test")
    assert [line[:9] for line in found[4:]] == ["PASS  s4:", "PASS  s5:"]


@pytest.mark.parametrize(
    "bags", ["x", {"s0": 1}, ["s0"], [{"image": 3}], [{"label": 1}], [{"image": ["s0"], "label": 1}], [None]]
)
def test_any_flaw_of_a_section_is_one_line(tmp_path: Path, bags: Any) -> None:
    given = sections(cohort(tmp_path))
    write_datalist(tmp_path, **{**given, "training": bags})
    found = examine(tmp_path)
    assert found[0].startswith("FAIL  ")
    assert [line[:5] for line in found[1:]] == ["PASS "] * 7


@pytest.mark.parametrize("text", ["training: a", "[1, 2]"])
def test_a_datalist_that_is_none_fails(tmp_path: Path, text: str) -> None:
    cohort(tmp_path)
    (tmp_path / "datalist.json").write_text(text)
    (only,) = examine(tmp_path)
    assert only.startswith(f"FAIL  the datalist {tmp_path / 'datalist.json'} ")


def test_a_datalist_that_is_missing_fails(tmp_path: Path) -> None:
    (only,) = examine(cohort(tmp_path), tmp_path / "none.json")
    assert only == (
        f"FAIL  cannot read the datalist {tmp_path / 'none.json'} (No such file or directory): give one with "
        '--datalist FILE, or put "datalist.json" into the dataset folder'
    )


def test_a_patient_in_two_sections_fails(tmp_path: Path) -> None:
    cohort(tmp_path)
    write_series(tmp_path / "s2", "1.2", study="1.2.9", patient="P0")
    assert examine(tmp_path)[3] == (
        "FAIL  1 of 5 patients and 0 of 60 slices are in more than one section (of s0 and s2): "
        "make the datalist again, with python -m scripts datalist ct"
    )


def test_slices_in_two_sections_fail(tmp_path: Path) -> None:
    cohort(tmp_path)
    shutil.rmtree(tmp_path / "s5")
    shutil.copytree(tmp_path / "s0", tmp_path / "s5")
    assert examine(tmp_path)[3].startswith(
        "FAIL  1 of 5 patients and 10 of 50 slices are in more than one section (of s0"
    )


def test_volumes_in_two_sections_fail(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "v.nii")
    bags = [{"bag_id": f"v{label}", "image": "v.nii", "label": label} for label in (0, 1)]
    write_datalist(tmp_path, training=bags, validation=bags)
    assert examine(tmp_path)[3].startswith("FAIL  0 of 0 patients and 1 of 1 slices are in more than one section")
    write_datalist(tmp_path, training=bags)
    assert examine(tmp_path)[3] == (
        "WARN  the scans name no patient, so it is not known who is in two sections: make sure that nobody is"
    )


def test_one_patient_id_for_all_is_told(tmp_path: Path) -> None:
    assert examine(cohort(tmp_path, patient="ANON"))[3] == (
        "WARN  the scans name 1 patient, so it is not known who is in two sections: make sure that nobody is"
    )


def test_slice_labels_of_a_datalist_are_examined(tmp_path: Path) -> None:
    given = sections(cohort(tmp_path))
    given["training"][0]["instance_label"] = {"1.0.1": 1}
    write_datalist(tmp_path, **given)
    assert (
        "FAIL  s0: instance_label does not fit 9 of the 10 slices: label every slice, or leave instance_label out"
        in (examine(tmp_path))
    )


def test_nobody_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.1", patient="SECRET-ID", PatientName="Secret^Name", SeriesDescription="Secret")
    write_series(tmp_path / "b", "1.2", study="1.8", patient="SECRET-ID", Modality="MR")
    assert "secret" not in "".join(examine(tmp_path)).lower()


def examined(path: Path, **bag: Any) -> ScanFinding:
    headers, rejected = read_headers(path)
    return examine_dicom({"bag_id": "x", **bag}, headers, rejected)


def test_a_good_scan_is_described(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=12, step=4.5, numbers=range(1, 13))
    assert examined(tmp_path) == ScanFinding(
        "x",
        Level.PASS,
        "12 slices of 16 x 16, spacing 4.50 mm, tilt 0.0 degrees, InstanceNumber ascending, Explicit VR Little Endian",
        slices=12,
    )


def test_tilt_syntax_and_size_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", ImageOrientationPatient=list(tilted(12)), implicit=True, pixels=phantom(1, 20)[0])
    text = examined(tmp_path).text
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
    finding = examined(tmp_path)
    assert (finding.level, f"InstanceNumber {told}" in finding.text) == (Level.PASS, True)


def test_what_is_skipped_is_named_with_its_reason(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", SeriesNumber=2)
    write_series(tmp_path, "1.2", SeriesNumber=3, ConvolutionKernel="BONE")
    write_series(tmp_path, "1.3", SeriesNumber=1, count=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    finding = examined(tmp_path)
    assert finding.level == Level.PASS
    assert "; skipped series 1 (1 slice): localizer, " in finding.text
    assert "series 3 (10 slices): bone kernel BONE" in finding.text


def test_gaps_and_double_slices_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=12)
    (tmp_path / "1.1_006.dcm").unlink()
    write_slice(
        tmp_path / "more.dcm", HEAD, SOPInstanceUID="1.1.99", SeriesInstanceUID="1.1", StudyInstanceUID="1.9",
        ImagePositionPatient=[-30.0, -40.0, 15.0], ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], PatientID="P1",
    )  # fmt: skip
    finding = examined(tmp_path)
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
    finding = examined(tmp_path)
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
    finding = examined(tmp_path)
    assert (finding.level, finding.fix) == (Level.WARN, LOOK)
    told = finding.text.split(" (10 slices")[0].split("; ")
    assert len(told) == len(remarks)
    for text, wanted in zip(told, remarks, strict=True):
        assert text.startswith(wanted)


def test_values_that_had_wrapped_are_read_and_told(tmp_path: Path) -> None:
    """12 bits without an offset: 30 HU are 30, air is 3096."""
    wrapped = np.where(HEAD < 0, HEAD + 4096, HEAD).astype(np.uint16)
    write_series(tmp_path, "1.1", pixels=wrapped, BitsStored=12, HighBit=11)
    finding = examined(tmp_path)
    assert finding.level == Level.WARN
    assert finding.text.startswith("values that had wrapped at 12 bits are unwrapped (10 slices")


def test_a_slice_that_is_cut_short_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1")
    middle = tmp_path / "1.1_005.dcm"
    middle.write_bytes(middle.read_bytes()[:-100])
    found = examined(tmp_path)
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
    text = examined(tmp_path).text
    assert text == (
        "the pixels of the middle slice, 1.1_005.dcm (JPEG 2000 Image Compression (Lossless Only)), cannot be decoded"
    )


def test_files_that_hold_nothing_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=19)
    (tmp_path / "1.1_000.dcm").write_bytes(b"")
    finding = examined(tmp_path)
    assert (finding.level, finding.text.split(" (18")[0]) == (Level.WARN, "1.1_000.dcm holds no complete image")
    for index in (1, 2):
        (tmp_path / f"1.1_{index:03d}.dcm").write_bytes(b"")
    assert examined(tmp_path) == ScanFinding(
        "x", Level.FAIL, "1.1_000.dcm holds no complete image, one of 3 such files", "copy the scan again"
    )
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    assert examined(tmp_path) == ScanFinding(
        "x",
        Level.FAIL,
        "no images; 1.1_000.dcm holds no complete image, one of 19 such files",
        "give the folder that holds the scan",
    )


def test_two_studies_and_no_ct_fail(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.1", Modality="MR")
    finding = examined(tmp_path)
    assert (finding.level, finding.fix) == (Level.FAIL, "")
    assert finding.text == (
        "it holds no axial CT series that can be read (a series without a number (10 slices): Modality MR): give one"
    )
    write_series(tmp_path / "b", "1.2", study="1.8")
    assert examined(tmp_path) == ScanFinding("x", Level.FAIL, "2 studies", "give each a folder")


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
    finding = examined(tmp_path, label=0, instance_label=given)
    assert (finding.level == Level.FAIL) == bool(lacking)
    if lacking:
        assert finding.text == f"instance_label does not fit {lacking} of the 10 slices"
        assert finding.fix == "label every slice, or leave instance_label out"


def test_frames_are_labelled_one_by_one(tmp_path: Path) -> None:
    stored = phantom(9)
    write_enhanced(tmp_path / "all.dcm", stored, [(0.0, 0.0, 5.0 * k) for k in range(9)], SOPInstanceUID="1.5")
    finding = examined(tmp_path, label=0, instance_label={f"1.5/{k + 1}": 0 for k in range(9)})
    assert "instance_label" not in finding.text
    finding = examined(tmp_path, label=0, instance_label={"1.5": 0})
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
    finding = examined(tmp_path, label=label, instance_label=given)
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
    finding = examined(shared_data("ct_dicom/ge_head_tilt18"))
    assert finding.level == Level.WARN
    assert finding.text == (
        "the slices are unevenly spaced, 1.14 to 7.38 mm (28 slices of 512 x 512, spacing 1.14 to 7.38 mm, "
        "tilt 18.5 degrees, InstanceNumber ascending, Explicit VR Little Endian)"
    )
