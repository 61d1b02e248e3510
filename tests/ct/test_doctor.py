# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.ct import doctor
from scripts.ct.datalist.writing import write_ct_datalist
from scripts.ct.doctor import examine_ct
from scripts.doctor.findings import Finding, Level, told
from tests.ct.rsna_cohort import write_rsna_cohort
from tests.ct.studies import write_series


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


def test_a_path_that_is_not_there_fails(tmp_path: Path) -> None:
    assert examine(tmp_path / "none") == [f"FAIL  {tmp_path / 'none'} does not exist: check the path"]


def test_a_folder_without_scans_fails(tmp_path: Path) -> None:
    assert examine(tmp_path) == [
        f"FAIL  {tmp_path} holds no scan (DICOM, NIfTI, NRRD, MetaImage): give the folder that holds the scans"
    ]


def test_a_good_cohort_passes(tmp_path: Path) -> None:
    found = examine(cohort(tmp_path))
    assert found[:4] == [
        "PASS  training: 2 scans, 1 positive, 1 negative",
        "PASS  validation: 2 scans, 1 positive, 1 negative",
        "PASS  test: 2 scans, 1 positive, 1 negative",
        "PASS  none of 6 patients and 60 slices is in two sections",
    ]
    assert [line[:19] for line in found[4:]] == [f"PASS  s{n}: 10 slices" for n in range(6)]


def test_a_datalist_may_lie_elsewhere(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cohort(tmp_path)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "mine.json"
    shutil.move(tmp_path / "datalist.json", elsewhere)
    assert len(examine(tmp_path)) == 1 + 6
    assert len(examine(tmp_path, elsewhere)) == 4 + 6


def test_relative_paths_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert examine(Path("data"))[3] == "PASS  none of 6 patients and 60 slices is in two sections"


def test_the_datalist_of_a_flat_cohort_passes_in_few_lines(tmp_path: Path) -> None:
    truth = write_rsna_cohort(tmp_path, series=20, slices=12, image_size=32)
    write_ct_datalist(tmp_path, None, None, "any", (0.7, 0.1, 0.2), 0, force=True)
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
    write_ct_datalist(tmp_path, None, None, "any", (0.4, 0.3, 0.3), 0, force=True)
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
        "FAIL  training: 1 scans, 0 positive, 1 negative: put scans of both classes into it",
        "WARN  validation: 1 scans, 1 positive, 0 negative: put scans of both classes into it",
        "PASS  test: 2 scans, 1 positive, 1 negative",
    ]


def test_sections_that_are_missing_are_told(tmp_path: Path) -> None:
    file = write_datalist(cohort(tmp_path), training=sections(tmp_path)["training"])
    assert examine(tmp_path)[1:3] == [
        f'WARN  {file} has no bags under "validation": add them before training',
        f'WARN  {file} has no bags under "test": add them before evaluation',
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
        "WARN  the scans tell of no patient, so it is not known who is in two sections: make sure that nobody is"
    )


def test_slices_without_a_uid_are_not_the_same(tmp_path: Path) -> None:
    found = examine(cohort(tmp_path, SOPInstanceUID=""))
    assert found[3] == "PASS  none of 6 patients and 60 slices is in two sections"


def test_one_patient_id_for_all_is_told(tmp_path: Path) -> None:
    assert examine(cohort(tmp_path, patient="ANON"))[3] == (
        "WARN  the scans tell of 1 patient, so it is not known who is in two sections: make sure that nobody is"
    )


def test_slice_labels_of_a_datalist_are_examined(tmp_path: Path) -> None:
    given = sections(cohort(tmp_path))
    given["training"][0]["instance_label"] = {"1.0.1": 1}
    write_datalist(tmp_path, **given)
    assert (
        "FAIL  s0: instance_label does not fit 9 of the 10 slices: label every slice, or leave instance_label out"
        in (examine(tmp_path))
    )


def test_what_is_told_ends_with_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding(Level.PASS, "a"), Finding(Level.WARN, "b", "c"), Finding(Level.INFO, "d")]
    assert told(findings)
    assert capsys.readouterr().out == "PASS  a\nWARN  b: c\nINFO  d\n1 PASS, 1 WARN, 0 FAIL\n"
    assert not told([*findings, Finding(Level.FAIL, "e")])
    assert capsys.readouterr().out.endswith("\n1 PASS, 1 WARN, 1 FAIL\n")


def test_nobody_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "1.1", patient="SECRET-ID", PatientName="Secret^Name", SeriesDescription="Secret")
    write_series(tmp_path / "b", "1.2", study="1.8", patient="SECRET-ID", Modality="MR")
    assert "secret" not in "".join(examine(tmp_path)).lower()
