# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
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
from scripts.ct.doctor import examine_ct, examine_scan
from scripts.doctor.findings import Finding, Level
from tests.ct.rsna_cohort import write_rsna_cohort
from tests.ct.series import phantom, tilted, write_enhanced, write_slice
from tests.ct.studies import HEAD, write_series
from tests.shared_data import shared_data


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computer has a test of its own."""
    monkeypatch.setattr(doctor, "examine_computer", lambda output_dir, _: iter([]))


def examine(path: Path, datalist: Path | None = None) -> list[str]:
    return list(map(str, examine_ct(path, datalist, Path("results"))))


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
    (none,) = examine(tmp_path)
    assert none.startswith(f"FAIL  {tmp_path} holds no scan (DICOM, NIfTI, NRRD, MetaImage)")
    write_series(tmp_path / "a" / "b", "1.1")
    write_series(tmp_path / "c", "1.2", study="1.8", Modality="MR")
    first, good, bad = examine(tmp_path)
    assert first == f"PASS  {tmp_path} holds 2 scans"
    assert good.startswith("PASS  a_b: 10 slices of ")
    assert bad.startswith("FAIL  c: it holds no axial CT series that can be read")
    assert "Modality MR" in bad


def test_one_scan_may_be_given(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.1")
    shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "a")
    first, scan = examine(tmp_path / "z.zip")
    assert first == f"PASS  {tmp_path / 'z.zip'} holds 1 scan"
    assert scan.startswith("PASS  z.zip: 10 slices of 16 x 16")
    assert examine(tmp_path / "a")[1].startswith("PASS  a: 10 slices of 16 x 16")


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
    assert found[4] == f"PASS  19 scans of {min(lengths)} to {max(lengths)} slices"
    assert [line[:5] for line in found] == ["PASS "] * 5 + ["WARN "]
    assert "1 slice may be missing" in found[-1]
    assert not any(scan.patient in line or scan.study in line for scan in truth for line in found)


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


def test_sections_with_one_class_are_reported(tmp_path: Path) -> None:
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
    assert found[0].startswith(f'FAIL  {file}, "training"[0] (s0) has no "label"')
    assert found[1].startswith(f'FAIL  {file}, "validation"[0] (s2): {tmp_path / "gone"} does not exist')
    assert found[2].startswith("PASS  test")
    assert [line[:9] for line in found[4:]] == ["PASS  s4:", "PASS  s5:"]


@pytest.mark.parametrize("bags", ["x", {"s0": 1}, ["s0"], [{"image": 3}], [{"image": ["s0"], "label": 1}], [None]])
def test_any_flaw_of_a_section_is_one_line(tmp_path: Path, bags: Any) -> None:
    given = sections(cohort(tmp_path))
    write_datalist(tmp_path, **{**given, "training": bags})
    assert [line[:5] for line in examine(tmp_path)] == ["FAIL ", *["PASS "] * 7]


def test_a_datalist_that_is_missing_or_none_fails(tmp_path: Path) -> None:
    cohort(tmp_path)
    for text in ("training: a", "[1, 2]"):
        (tmp_path / "datalist.json").write_text(text)
        (only,) = examine(tmp_path)
        assert only.startswith(f"FAIL  the datalist {tmp_path / 'datalist.json'} ")
    (only,) = examine(tmp_path, tmp_path / "none.json")
    assert only.startswith(f"FAIL  cannot read the datalist {tmp_path / 'none.json'} (No such file or directory)")


def test_patients_and_slices_in_two_sections_fail(tmp_path: Path) -> None:
    cohort(tmp_path)
    write_series(tmp_path / "s2", "1.2", study="1.2.9", patient="P0")
    leak = examine(tmp_path)[3]
    assert leak.startswith("FAIL  1 of 5 patients and 0 of 60 slices are in more than one section (of s0 and s2): make")
    shutil.rmtree(tmp_path / "s5")
    shutil.copytree(tmp_path / "s0", tmp_path / "s5")
    assert examine(tmp_path)[3].startswith("FAIL  1 of 4 patients and 10 of 50 slices are in more than one section")


def test_volumes_in_two_sections_fail(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "v.nii")
    bags = [{"bag_id": f"v{label}", "image": "v.nii", "label": label} for label in (0, 1)]
    write_datalist(tmp_path, training=bags, validation=bags)
    assert examine(tmp_path)[3].startswith("FAIL  0 of 0 patients and 1 of 1 slices are in more than one section")
    write_datalist(tmp_path, training=bags)
    assert examine(tmp_path)[3].startswith("WARN  the scans name no patient, so nobody knows who is in two sections")


def test_one_patient_id_for_all_is_reported(tmp_path: Path) -> None:
    finding = examine(cohort(tmp_path, patient="ANON"))[3]
    assert finding.startswith("WARN  the scans name 1 patient, so nobody knows who is in two sections")


def test_slice_labels_of_a_datalist_are_examined(tmp_path: Path) -> None:
    given = sections(cohort(tmp_path))
    given["training"][0]["instance_label"] = {"1.0.1": 1}
    write_datalist(tmp_path, **given)
    assert any(line.startswith("FAIL  s0: instance_label does not fit 9 of the 10") for line in examine(tmp_path))


def test_nobody_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.1", patient="SECRET-ID", PatientName="Secret^Name", SeriesDescription="Secret")
    write_series(tmp_path / "b", "1.2", study="1.8", patient="SECRET-ID", Modality="MR")
    assert "secret" not in "".join(examine(tmp_path)).lower()


def examined(path: Path, **bag: Any) -> Finding:
    headers, rejected = read_headers(path)
    return examine_scan({"bag_id": "x", "image": str(path), **bag}, headers, rejected)


def test_a_good_scan_is_described(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.1", count=12, step=4.5, numbers=range(1, 13))
    text = (
        "12 slices of 16 x 16, spacing 4.50 mm, tilt 0.0 degrees, InstanceNumber ascending, Explicit VR Little Endian"
    )
    assert examined(tmp_path / "a") == Finding(Level.PASS, text, name="x", size=12)
    tilt, pixels = list(tilted(12)), phantom(1, 20)[0]
    write_series(tmp_path / "b", "1.2", ImageOrientationPatient=tilt, implicit=True, pixels=pixels)
    text = examined(tmp_path / "b").text
    assert text.startswith("10 slices of 20 x 20, spacing 5.00 mm, tilt 12.0 degrees, ")
    assert text.endswith(", Implicit VR Little Endian")


@pytest.mark.parametrize(
    ("numbers", "order"),
    [
        (None, "missing"),
        (range(10), "ascending"),
        (range(10, 0, -1), "descending"),
        ([1, 3, 2, 4, 5, 6, 7, 8, 9, 10], "out of order"),
        ([1] * 10, "out of order"),
    ],
)
def test_how_instance_numbers_run_is_reported(tmp_path: Path, numbers: Any, order: str) -> None:
    write_series(tmp_path, "1.1", numbers=numbers)
    finding = examined(tmp_path)
    assert (finding.level, f"InstanceNumber {order}" in finding.text) == (Level.PASS, True)


def test_few_slices_are_reported(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=4)
    assert examined(tmp_path).text.startswith("few slices for a head (4 slices")


def test_what_is_skipped_is_named_with_its_reason(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", SeriesNumber=2)
    write_series(tmp_path, "1.2", SeriesNumber=3, ConvolutionKernel="BONE")
    write_series(tmp_path, "1.3", SeriesNumber=1, count=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    finding = examined(tmp_path)
    assert finding.level == Level.PASS
    assert "; skipped series 1 (1 slice): localizer, " in finding.text
    assert "series 3 (10 slices): bone kernel BONE" in finding.text


def test_gaps_and_double_slices_are_reported(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=12)
    (tmp_path / "1.1_006.dcm").unlink()
    write_slice(
        tmp_path / "more.dcm", HEAD, SOPInstanceUID="1.1.99", SeriesInstanceUID="1.1", StudyInstanceUID="1.9",
        ImagePositionPatient=[-30.0, -40.0, 15.0], ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], PatientID="P1",
    )  # fmt: skip
    finding = examined(tmp_path)
    assert (finding.level, finding.size) == (Level.WARN, 11)
    assert finding.text.startswith(
        "1 slice at the position of another left out; the slices are unevenly spaced, 5.00 to 10.00 mm; "
        "10.00 mm between slices 6 and 7, where 5.00 mm is usual: 1 slice may be missing (11 slices of 16 x 16, "
    )


@pytest.mark.parametrize(
    ("pixels", "remarks"),
    [
        (HEAD + np.int16(1124), ["124 HU at the border of the middle slice", "0.0% of the middle slice is"]),
        (np.full((16, 16), -1000, np.int16), ["0.0% of the middle slice is between 0 and 80 HU, where brain"]),
        (np.full((16, 16), 40, np.int16), ["40 HU at the border of the middle slice, where air is expected"]),
    ],
)
def test_implausible_hounsfield_units_are_reported(tmp_path: Path, pixels: np.ndarray, remarks: list[str]) -> None:
    write_series(tmp_path, "1.1", pixels=pixels)
    finding = examined(tmp_path)
    assert finding.level == Level.WARN
    for text, wanted in zip(finding.text.split(" (10 slices")[0].split("; "), remarks, strict=True):
        assert text.startswith(wanted)


def test_values_that_had_wrapped_are_read_and_reported(tmp_path: Path) -> None:
    """12 bits without an offset: 30 HU are 30, air is 3096."""
    wrapped = np.where(HEAD < 0, HEAD + 4096, HEAD).astype(np.uint16)
    write_series(tmp_path, "1.1", pixels=wrapped, BitsStored=12, HighBit=11)
    finding = examined(tmp_path)
    assert finding.level == Level.WARN
    assert finding.text.startswith("values that had wrapped at 12 bits are unwrapped (10 slices")


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
    assert text.startswith("cannot decode the middle slice, 1.1_005.dcm (JPEG 2000 Image Compression (Lossless Only))")


def test_files_that_hold_nothing_are_reported(tmp_path: Path) -> None:
    write_series(tmp_path, "1.1", count=19)
    (tmp_path / "1.1_000.dcm").write_bytes(b"")
    finding = examined(tmp_path)
    assert (finding.level, finding.text.split(" (18")[0]) == (Level.WARN, "1.1_000.dcm holds no complete image")
    for index in (1, 2):
        (tmp_path / f"1.1_{index:03d}.dcm").write_bytes(b"")
    some = "1.1_000.dcm holds no complete image, one of {} such files: "
    finding = examined(tmp_path)
    assert (finding.level, finding.text) == (Level.FAIL, f"{some.format(3)}copy the scan again")
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    finding = examined(tmp_path)
    assert (finding.level, finding.text.startswith(f"no images; {some.format(19)}")) == (Level.FAIL, True)


def test_two_studies_fail(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.1")
    write_series(tmp_path / "b", "1.2", study="1.8")
    assert examined(tmp_path) == Finding(Level.FAIL, "2 studies: give each a folder", name="x")


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
    wrong = f"instance_label does not fit {lacking} of the 10 slices"
    assert (finding.level == Level.FAIL, finding.text.startswith(wrong)) == (bool(lacking), bool(lacking))


def test_frames_are_labelled_one_by_one(tmp_path: Path) -> None:
    stored = phantom(9)
    write_enhanced(tmp_path / "all.dcm", stored, [(0.0, 0.0, 5.0 * k) for k in range(9)], SOPInstanceUID="1.5")
    finding = examined(tmp_path, label=0, instance_label={f"1.5/{k + 1}": 0 for k in range(9)})
    assert "instance_label" not in finding.text
    finding = examined(tmp_path, label=0, instance_label={"1.5": 0})
    assert finding.text.startswith("instance_label does not fit 9 of the 9 slices")


@pytest.mark.parametrize(
    ("label", "given", "remark"),
    [
        (0, [0] * 9 + [1], "label 0, though 1 of its slices is positive"),
        (0, [0] * 8 + [1, 1], "label 0, though 2 of its slices are positive"),
        (1, [0] * 10, "label 1, though none of its slices is positive"),
        (1, [1] * 10, None),
    ],
)
def test_labels_that_contradict_each_other_are_reported(
    tmp_path: Path, label: int, given: list[int], remark: str | None
) -> None:
    write_series(tmp_path, "1.1")
    finding = examined(tmp_path, label=label, instance_label=given)
    assert finding.level == (Level.WARN if remark else Level.PASS)
    assert finding.text.startswith(f"{remark} (10 slices" if remark else "10 slices")


def test_volumes_are_examined_too(tmp_path: Path) -> None:
    head = np.repeat(phantom(1, 24)[0].T[..., None], 9, axis=2).astype(np.float32)
    path = tmp_path / "v.nii.gz"
    nib.save(nib.Nifti1Image(head, np.diag([0.5, 0.5, 3.0, 1.0])), path)
    bag = {"bag_id": "v", "label": 0, "image": str(path)}
    good = Finding(Level.PASS, "9 slices of 24 x 24, spacing 3.00 mm, tilt 0.0 degrees", name="v", size=9)
    assert examine_scan(bag, [], []) == good
    wrong = examine_scan({**bag, "instance_label": [0] * 8}, [], []).text
    assert wrong.startswith("instance_label does not fit 1 of the 9 slices")
    nib.save(nib.Nifti1Image(np.clip(head, 0, 255), np.eye(4)), path)  # a picture, no HU
    finding = examine_scan(bag, [], [])
    assert finding.level == Level.WARN
    assert finding.text.startswith("0 HU at the border of the middle slice, where air is expected (9 slices")
    path.write_bytes(b"nothing")
    finding = examine_scan(bag, [], [])
    assert (finding.level, finding.text.startswith(f"{path} cannot be read as NIfTI")) == (Level.FAIL, True)


def test_the_real_tilted_scan() -> None:
    finding = examined(shared_data("ct_dicom/ge_head_tilt18"))
    assert (finding.level, finding.size) == (Level.WARN, 28)
    assert finding.text.startswith("the slices are unevenly spaced, 1.14 to 7.38 mm (28 slices of 512 x 512, ")
    assert "tilt 18.5 degrees, InstanceNumber ascending" in finding.text
