# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless

from scripts.ct import doctor
from scripts.ct.datalist.from_features import FeatureRequest, write_cohort_of_features
from scripts.ct.datalist.writing import CtDatalistRequest, write_ct_datalist
from scripts.ct.dicom.headers import read_headers
from scripts.ct.doctor import examine_ct, examine_scan
from scripts.ct.features import read_slice_features
from scripts.doctor.findings import Finding, Level
from tests.ct.rsna_cohort import write_rsna_cohort
from tests.ct.series import HEAD, compress, phantom, tilted, write_enhanced, write_head


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computer has a test of its own."""
    monkeypatch.setattr(doctor, "examine_computer", lambda output_dir, _: iter([]))


def examine(path: Path, datalist: Path | None = None) -> list[str]:
    return list(map(str, examine_ct(path, datalist, Path("results"))))


def cohort(folder: Path, **tags: Any) -> Path:
    """s0 to s5, of a patient each, every second one positive, two in each section."""
    bags = []
    for n in range(6):
        write_head(folder / f"s{n}", f"1.{n}", study=f"1.{n}.9", **{"patient": f"P{n}", **tags})
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


def test_scans_below_a_folder_or_one_scan(tmp_path: Path) -> None:
    (none,) = examine(tmp_path / "none")
    assert none == f"FAIL  {tmp_path / 'none'} does not exist: check the path"
    (none,) = examine(tmp_path)
    assert none.startswith(f"FAIL  {tmp_path} holds no scan (DICOM, NIfTI, NRRD, MetaImage)")
    write_head(tmp_path / "a" / "b", "1.1", patient="SECRET-ID", PatientName="Secret^Name", SeriesDescription="Secret")
    write_head(tmp_path / "c", "1.2", study="1.8", Modality="MR")
    first, good, bad = examine(tmp_path)
    assert first == f"PASS  {tmp_path} holds 2 scans"
    assert good.startswith("PASS  a_b: 10 slices of ")
    assert bad.startswith("FAIL  c: it holds no axial CT series that can be read")
    assert "Modality MR" in bad
    assert "secret" not in (good + bad).lower()
    shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "a")
    first, scan = examine(tmp_path / "z.zip")
    assert first == f"PASS  {tmp_path / 'z.zip'} holds 1 scan"
    assert scan.startswith("PASS  z.zip: 10 slices of 16 x 16")


def test_a_good_cohort_passes_wherever_its_datalist_lies(tmp_path: Path, tmp_path_factory: Any) -> None:
    found = examine(cohort(tmp_path))
    assert found[:4] == [
        *(f"PASS  {section}: 2 scans, 1 negative, 1 positive" for section in ("training", "validation", "test")),
        "PASS  none of 6 patients and 60 slices is in two sections",
    ]
    assert [line[:19] for line in found[4:]] == [f"PASS  s{n}: 10 slices" for n in range(6)]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "mine.json"
    shutil.move(tmp_path / "datalist.json", elsewhere)
    assert examine(tmp_path, elsewhere) == found
    assert len(examine(tmp_path)) == 1 + 6


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


def test_flaws_of_the_datalist_are_reported(tmp_path: Path) -> None:
    given = sections(cohort(tmp_path))
    write_datalist(tmp_path, training=given["training"][:1], validation=given["validation"][1:], test=given["test"])
    assert examine(tmp_path)[:2] == [
        "FAIL  training: 1 scans, 1 negative, 0 positive: put scans of both classes into it",
        "WARN  validation: 1 scans, 0 negative, 1 positive: put scans of both classes into it",
    ]
    del given["training"][0]["label"]
    given["validation"][0]["image"] = "gone"
    given["test"][0]["instance_label"] = {"1.4.1": 1}
    file = write_datalist(tmp_path, **given)
    found = examine(tmp_path)
    assert found[0].startswith(f'FAIL  {file}, "training"[0] (s0) has no "label"')
    assert found[1].startswith(f'FAIL  {file}, "validation"[0] (s2): {tmp_path / "gone"} does not exist')
    assert found[2].startswith("PASS  test")
    assert [line[:9] for line in found[4:]] == ["PASS  s5:", "FAIL  s4:"]
    assert "lacks 9 of its 10 slices" in found[5]
    flawed: list[Any] = ["x", {"s0": 1}, ["s0"], [{"image": 3}], [{"image": ["s0"], "label": 1}], [None]]
    for bags in flawed:
        write_datalist(tmp_path, **{**sections(cohort(tmp_path)), "training": bags})
        assert [line[:5] for line in examine(tmp_path)] == ["FAIL ", *["PASS "] * 7]
    for text in ("training: a", "[1, 2]"):
        file.write_text(text)
        (only,) = examine(tmp_path)
        assert only.startswith(f"FAIL  the datalist {file} ")
    (only,) = examine(tmp_path, tmp_path / "none.json")
    assert only.startswith(f"FAIL  cannot read the datalist {tmp_path / 'none.json'} (No such file or directory)")


def test_patients_and_slices_in_two_sections_fail(tmp_path: Path) -> None:
    cohort(tmp_path)
    write_head(tmp_path / "s2", "1.2", study="1.2.9", patient="P0")
    leak = examine(tmp_path)[3]
    assert leak.startswith("FAIL  1 of 5 patients and 0 of 60 slices are in more than one section (of s0 and s2): make")
    shutil.rmtree(tmp_path / "s5")
    shutil.copytree(tmp_path / "s0", tmp_path / "s5")
    assert examine(tmp_path)[3].startswith("FAIL  1 of 4 patients and 10 of 50 slices are in more than one section")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "v.nii")
    bags = [{"bag_id": f"v{label}", "image": "v.nii", "label": label} for label in (0, 1)]
    write_datalist(tmp_path, training=bags, validation=bags)
    assert examine(tmp_path)[3].startswith("FAIL  0 of 0 patients and 1 of 1 slices are in more than one section")
    finding = examine(cohort(tmp_path / "anon", patient="ANON"))[3]
    assert finding.startswith("WARN  the scans name 1 patient, so nobody knows who is in two sections")


def examined(path: Path, **bag: Any) -> Finding:
    headers, rejected = read_headers(path)
    return examine_scan({"bag_id": "x", "image": str(path), **bag}, headers, rejected)


def test_a_good_scan_is_described(tmp_path: Path) -> None:
    write_head(tmp_path / "a", "1.1", count=12, step=4.5, numbers=range(1, 13))
    text = (
        "12 slices of 16 x 16, spacing 4.50 mm, tilt 0.0 degrees, InstanceNumber ascending, Explicit VR Little Endian"
    )
    assert examined(tmp_path / "a") == Finding(Level.PASS, text, name="x", size=12)
    tilt, pixels = list(tilted(12)), phantom(1, 20)[0]
    write_head(tmp_path / "b", "1.2", count=1, ImageOrientationPatient=tilt, implicit=True, pixels=pixels)
    assert examined(tmp_path / "b").text == (
        "1 slice, few for a head (1 slices of 20 x 20, tilt 12.0 degrees, InstanceNumber missing, "
        "Implicit VR Little Endian)"
    )
    swapped = [1, 3, 2, *range(4, 11)]
    for numbers, order in ((range(10, 0, -1), "descending"), (swapped, "out of order"), ([1] * 10, "out of order")):
        write_head(tmp_path / "c", "1.3", numbers=numbers)
        finding = examined(tmp_path / "c")
        assert (finding.level, f"InstanceNumber {order}" in finding.text) == (Level.PASS, True)


def test_a_name_that_is_not_utf8_or_that_no_terminal_prints_is_told_escaped(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"\x1b[31mred"):
        write_head(tmp_path / os.fsdecode(name), f"1.{len(name)}", study=f"1.{len(name)}.9")
    *_, red, latin = sorted(examine(tmp_path), reverse=True)
    assert red.startswith("PASS  %1B[31mred: 10 slices")
    assert latin == f"FAIL  caf%E9: {tmp_path}/caf%E9 has a name that is not in UTF-8: rename it"


def test_what_is_skipped_is_named_with_its_reason(tmp_path: Path) -> None:
    write_head(tmp_path, "1.1", SeriesNumber=2)
    write_head(tmp_path, "1.2", SeriesNumber=3, ConvolutionKernel="BONE")
    write_head(tmp_path, "1.3", SeriesNumber=1, count=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    finding = examined(tmp_path)
    assert finding.level == Level.PASS
    assert "; skipped series 1 (1 slice): localizer, " in finding.text
    assert "series 3 (10 slices): bone kernel BONE" in finding.text
    write_head(tmp_path, "1.4", study="1.8")
    assert examined(tmp_path) == Finding(Level.FAIL, "it holds 2 studies: give each a folder", name="x")


FRAMED = np.pad(HEAD[1:-1, 1:-1], 1, constant_values=124)
# 12 bits without an offset: 30 HU are 30, air is 3096.
WRAPPED = np.where(HEAD < 0, HEAD + 4096, HEAD).astype(np.uint16)


@pytest.mark.parametrize(
    ("pixels", "remark"),
    [
        (
            HEAD + np.int16(1024),
            "hardly a head CT in Hounsfield units: no value of the middle slice is below 24, where",
        ),
        (
            FRAMED,
            "hardly a head CT in Hounsfield units: 124 HU at the border of the middle slice, where air is expected",
        ),
        (np.full((16, 16), -1000, np.int16), "hardly a head CT in Hounsfield units: the middle slice shows 0 cm² of a"),
        (WRAPPED, "values that had wrapped at 12 bits are unwrapped (10 slices"),
    ],
)
def test_implausible_hounsfield_units_are_reported(tmp_path: Path, pixels: np.ndarray, remark: str) -> None:
    write_head(tmp_path, "1.1", pixels=pixels, BitsStored=12, HighBit=11)
    finding = examined(tmp_path)
    assert (finding.level, finding.text[: len(remark)]) == (Level.WARN, remark)


def test_a_damaged_compressed_slice_fails_with_its_syntax(tmp_path: Path) -> None:
    write_head(tmp_path, "1.1")
    compress(tmp_path / "1.1_005.dcm", JPEG2000Lossless)
    content = (tmp_path / "1.1_005.dcm").read_bytes()
    (tmp_path / "1.1_005.dcm").write_bytes(content.replace(b"\xff\x4f\xff\x51", b"none"))  # how JPEG 2000 starts
    text = examined(tmp_path).text
    assert text.startswith("cannot decode the middle slice, 1.1_005.dcm (JPEG 2000 Image Compression (Lossless Only))")


def test_files_that_hold_nothing_are_reported(tmp_path: Path) -> None:
    assert examined(tmp_path).text == "it holds no images: give the folder that holds the scan"
    write_head(tmp_path, "1.1", count=29)
    why, findings = "1.1_000.dcm holds no complete image", []
    for index in range(29):
        (tmp_path / f"1.1_{index:03d}.dcm").write_bytes(b"")
        if index in (0, 1, 2, 28):
            findings.append(examined(tmp_path))
    assert [finding.level for finding in findings] == [Level.WARN, Level.WARN, Level.FAIL, Level.FAIL]
    assert [finding.text.split(" (2")[0] for finding in findings] == [
        why,
        f"{why}, one of 2 such files",
        f"it has lost 3 or more of 29 images ({why}): copy the scan again, or store it uncompressed",
        f"it holds no image that can be read ({why}): copy the scan again, or store it uncompressed",
    ]


def test_labels_of_slices_or_frames_must_fit_them_and_the_scan(tmp_path: Path) -> None:
    write_head(tmp_path / "a", "1.1")
    write_enhanced(tmp_path / "all", phantom(9), [(0.0, 0.0, 5.0 * k) for k in range(9)], SOPInstanceUID="1.5")
    cases: tuple[tuple[str, int, Any, Level, str], ...] = (
        ("a", 0, {f"1.1.{k + 1}": 0 for k in range(10)}, Level.PASS, "10 slices"),
        ("a", 0, {f"1.1.{k + 1}": 0 for k in range(8)}, Level.FAIL, "instance_label of x lacks 2 of its 10 slices"),
        ("a", 0, [0] * 9 + [1], Level.WARN, "label 0 contradicts its slices, 1 of 10 positive (10 slices"),
        ("a", 1, [0] * 10, Level.WARN, "label 1 contradicts its slices, 0 of 10 positive (10 slices"),
        ("all", 0, {f"1.5/{k + 1}": 0 for k in range(9)}, Level.WARN, "hardly a head CT in"),  # nothing of labels
        ("all", 0, {"1.5": 0}, Level.FAIL, "instance_label of x lacks 9 of its 9 slices"),
    )
    for name, label, given, level, remark in cases:
        finding = examined(tmp_path / name, label=label, instance_label=given)
        assert (finding.level, finding.text[: len(remark)]) == (level, remark)


def test_volumes_are_examined_too(tmp_path: Path) -> None:
    head = np.repeat(phantom(1, 24)[0].T[..., None], 9, axis=2).astype(np.float32)
    path = tmp_path / "v.nii.gz"
    nib.save(nib.Nifti1Image(head, np.diag([8.0, 10.0, 5.0, 1.0])), path)
    bag = {"bag_id": "v", "label": 0, "image": str(path)}
    good = Finding(Level.PASS, "9 slices of 24 x 24, spacing 5.00 mm, tilt 0.0 degrees", name="v", size=9)
    assert examine_scan(bag, [], []) == good
    assert "has 8 entries for 9 slices" in examine_scan({**bag, "instance_label": [0] * 8}, [], []).text
    nib.save(nib.Nifti1Image(np.clip(head, 0, 255), np.eye(4)), path)  # a picture, no HU
    finding = examine_scan(bag, [], [])
    assert finding.level == Level.WARN
    assert "no value of the middle slice is below 0, where air is near -1000, and it is 9 mm long" in finding.text
    path.write_bytes(b"nothing")
    finding = examine_scan(bag, [], [])
    assert (finding.level, finding.text.startswith(f"{path} cannot be read as NIfTI")) == (Level.FAIL, True)


def feature_cohort(folder: Path) -> Path:
    """Six scans of a patient each, every second one positive."""
    lines = [f"{n + k / 9},{k},f{n},{k},{n % 2}" for n in range(6) for k in range(9)]
    (folder / "t.csv").write_text("\n".join(["feature_0,feature_1,scan,order,label", *lines]))
    output = folder / "features"
    output.mkdir()
    write_cohort_of_features(FeatureRequest(source=folder / "t.csv", folder=output, shares=(0.4, 0.3, 0.3)))
    return output


def test_slice_features_are_examined_in_place_of_scans(tmp_path: Path) -> None:
    folder = feature_cohort(tmp_path)
    found = examine(folder)
    assert found[3] == "PASS  none of 6 patients and 6 scans is in two sections"
    assert sorted(found[4:]) == [f"PASS  f{n}: 9 slices of 2 features, t" for n in range(6)]
    given = sections(folder)
    write_datalist(folder, **{**given, "test": []})
    assert any("2 feature files are in no section" in line for line in examine(folder))
    write_datalist(folder, **{**given, "test": [{**given["test"][0], "patient": given["training"][0]["patient"]}]})
    assert any(line.startswith("FAIL  1 of ") for line in examine(folder))
    (folder / "datalist.json").unlink()
    assert examine(folder)[0] == f"PASS  {folder} holds 6 scans"
    assert examine(folder / "f0.h5")[1].endswith("f0.h5: 9 slices of 2 features, t")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"features": np.full((9, 2), np.nan)}, "FAIL  f1: features hold NaN or infinite values"),
        ({"features": np.ones((9, 3))}, "FAIL  f1: 3 features of each slice, where others have 2"),
        ({"features": np.ones((9, 2))}, "WARN  f1: all features are alike"),
        ({"positions_mm": np.zeros(9)}, "WARN  f1: positions do not ascend, so the order of slices is in doubt"),
        ({"encoder": "another"}, "WARN  f1: the encoder is another, of others t"),
    ],
)
def test_flaws_of_slice_features_are_reported(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    folder = feature_cohort(tmp_path)
    scan = replace(read_slice_features(folder / "f1.h5"), **change)
    with h5py.File(folder / "f1.h5", "a") as file:  # what writing refuses too
        del file["features"], file["positions_mm"]
        file["features"], file["positions_mm"], file.attrs["encoder"] = scan.features, scan.positions_mm, scan.encoder
    (folder / "datalist.json").unlink()
    assert any(each.startswith(line) for each in examine(folder)), examine(folder)


def test_a_table_that_is_no_feature_file_yet_is_told_the_command(tmp_path: Path) -> None:
    feature_cohort(tmp_path)
    (found,) = examine(tmp_path / "t.csv")
    assert found.startswith(f"PASS  {tmp_path / 't.csv'}: 6 scans, 2 features of each slice, all finite; make feature")
    np.save(tmp_path / "a.npy", np.ones((3, 2)))
    (found,) = examine(tmp_path / "a.npy")
    assert found.startswith("WARN")
    assert "but no column of the order and no label: make feature files of it: python -m scripts features ct" in found
    (tmp_path / "b.npy").write_text("")
    (found,) = examine(tmp_path / "b.npy")
    assert found.startswith("FAIL")
    (tmp_path / "T.CSV").write_text((tmp_path / "t.csv").read_text())
    assert examine(tmp_path / "T.CSV")[0].startswith(f"PASS  {tmp_path / 'T.CSV'}: 6 scans")
    (tmp_path / "T.CSV").write_text((tmp_path / "t.csv").read_text().replace("scan", "bag_name"))
    (found,) = examine(tmp_path / "T.CSV")
    assert found.endswith("of which scan a slice is, --scan (python -m scripts features ct --help)")
