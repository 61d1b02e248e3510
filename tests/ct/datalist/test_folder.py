# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.core.errors import InputError
from scripts.ct.datalist.folder import ScanLabel, collect_folder, read_scan_labels
from scripts.ct.datalist.images import Cohort
from tests.ct.series import write_head
from tests.ct.volumes import write_nrrd


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scans of every form: folders, nested ones, a zip, one DICOM file, NIfTI and NRRD."""
    write_head(tmp_path / "scans" / "a", "1.1", study="1.10", patient="P1")
    write_head(tmp_path / "scans" / "b" / "series", "1.2", study="1.20", patient="P1")
    write_head(tmp_path / "unpacked", "1.3", study="1.30", patient="P2")
    shutil.make_archive(str(tmp_path / "c"), "zip", tmp_path / "unpacked")
    shutil.rmtree(tmp_path / "unpacked")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 7), np.float32), np.eye(4)), tmp_path / "d.nii.gz")
    write_nrrd(tmp_path / "e.nrrd", np.zeros((4, 4, 9), np.float32), np.eye(4))
    return tmp_path


def collect(folder: Path, *lines: str, columns: str = "scan,label") -> Cohort:
    labels = folder / "labels.csv"
    labels.write_text("\n".join([columns, *lines]) + "\n")
    return collect_folder(folder, labels, folder / "index.jsonl")[0]


def test_a_scan_may_have_any_form_and_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    shutil.copy(folder / "d.nii.gz", other / "far.nii.gz")
    write_head(other / "near", "1.7")
    elsewhere = (f"{other}/far.nii.gz,1", f"{os.path.relpath(other / 'near', folder)},0")
    cohort = collect(folder, "scans/a,1", "scans/b,0", "c.zip,1", "d.nii.gz,0", "./e.nrrd,1", *elsewhere)
    assert [(scan.bag_id, scan.image, scan.label, scan.slices) for scan in cohort.scans[:5]] == [
        ("scans_a", "scans/a", 1, 10), ("scans_b", "scans/b/series", 0, 10), ("c", "c.zip", 1, 10),
        ("d", "d.nii.gz", 0, 7), ("e", "e.nrrd", 1, 9),
    ]  # fmt: skip
    wanted = [(f"{other}/far.nii.gz", 7), (f"{other}/near", 10)]
    assert [(scan.image, scan.slices) for scan in cohort.scans[5:]] == wanted
    assert not any("/" in scan.bag_id for scan in cohort.scans)
    assert cohort.rejected.as_json() == {}

    sops = write_head(folder / "scans" / "a", "1.4", study="1.10", ConvolutionKernel="BONE", SeriesNumber=9)
    cohort = collect(folder, "scans/a,1")
    (scan,) = cohort.scans
    assert scan.image == [f"scans/a/1.1_{index:03d}.dcm" for index in range(10)]  # of several series
    assert not set(scan.sops) & set(sops)
    assert list(cohort.warnings.as_json()) == ["series N (N slices): bone kernel BONE"]


def test_patients_come_from_the_headers_or_from_the_table(folder: Path) -> None:
    lines = ("scans/a,1", "scans/b,0", "c.zip,1", "d.nii.gz,0")
    cohort = collect(folder, *lines)
    a, b, c, d = (scan.patient for scan in cohort.scans)
    assert (a == b, len({a, c, d})) == (True, 3)
    assert cohort.patients_not_in_headers() == {"d": "d"}
    assert cohort.warnings.as_lines() == ["no PatientID, so taken for a patient of its own: 1, such as d"]

    given = collect(folder, *(f"{line},p{number}" for number, line in enumerate(lines)), columns="scan,label,patient")
    assert [scan.patient for scan in given.scans] == ["p0", "p1", "p2", "p3"]
    assert (len(given.patients_not_in_headers()), given.warnings.as_json()) == (4, {})


def test_without_a_patient_id_a_study_is_a_patient_and_slices_without_a_uid_are_no_copies(tmp_path: Path) -> None:
    for number, study in ((1, "1.1.9"), (2, "1.2.9"), (3, "1.1.9"), (4, "")):
        write_head(tmp_path / f"s{number}", f"1.{number}", study=study, patient="", SOPInstanceUID="")
    cohort = collect(tmp_path, "s1,0", "s2,1", "s3,0", "s4,0")
    one, two, again, nameless = (scan.patient for scan in cohort.scans)
    assert (one == again, len({one, two, nameless})) == (True, 3)
    assert [(scan.slices, scan.sops) for scan in cohort.scans] == [(10, ())] * 4
    assert cohort.warnings.as_lines() == ["no PatientID, so its study is taken for a patient: 4, such as s1"]


def test_a_scan_may_be_named_in_several_ways(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its whole path, by the name that inference gives it, or as the folder itself."""
    monkeypatch.chdir(folder.parent)
    for given, name in ((folder, f"{folder}/scans/a"), (Path(folder.name), f"{folder}/scans/a"), (folder, "scans_a")):
        (scan,) = collect(given, f"{name},1").scans
        assert (scan.bag_id, scan.image) == ("scans_a", "scans/a")
    (itself,) = collect(folder / "scans" / "a", ".,1").scans
    assert (itself.bag_id, itself.image) == ("a", ".")


def test_copies_of_a_scan_are_rejected_and_refused_where_their_labels_differ(folder: Path) -> None:
    shutil.copytree(folder / "scans" / "a", folder / "copy")
    cohort = collect(folder, "scans/a,1", "c.zip,1", "copy,1")
    cohort.drop_copies()
    assert [scan.bag_id for scan in cohort.scans] == ["c", "copy"]
    assert cohort.rejected.as_json()["copy of another scan's slices"]["examples"] == ["scans_a (of copy)"]
    with pytest.raises(InputError, match=r"^copy and scans_a hold the same slices and have two labels: "):
        collect(folder, "scans/a,1", "copy,0").drop_copies()


def test_what_cannot_be_read_is_left_out_and_images_in_no_row_are_counted(folder: Path) -> None:
    (folder / "broken.nii.gz").write_bytes(b"nothing")
    (folder / "empty").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 7, 2), np.float32), np.eye(4)), folder / "four.nii")
    write_head(folder / "two", "1.5", study="1.50")
    write_head(folder / "two", "1.6", study="1.60")
    cohort = collect(folder, "c.zip,1", "broken.nii.gz,1", "empty,0", "four.nii,1", "two,0")
    assert [scan.bag_id for scan in cohort.scans] == ["c"]
    assert cohort.rejected.as_lines() == [
        "image in no scan that has a row: 20, such as scans/a/1.1_000.dcm",
        "scan that holds N studies: 1, such as two: holds 2 studies",
        "scan that holds no images that can be read: 1, such as empty: holds no images that can be read",
        "volume that cannot be read: 1, such as broken",
        "volume that has not three axes: 1, such as four",
    ]


def test_unknown_scans_and_two_rows_of_one_name_are_refused_with_their_lines(folder: Path) -> None:
    listed = "'x0' in line 3, 'x1' in line 4, 'x2' in line 5 and 2 more"
    with pytest.raises(InputError, match=rf"names 5 of 6 scans that are not in {folder} \({listed}\): give each"):
        collect(folder, "scans/a,1", *(f"x{number},0" for number in range(5)))
    shutil.copytree(folder / "scans" / "a", folder / "scans_a")
    with pytest.raises(InputError, match=r"labels\.csv, lines 2 and 3 would both be named scans_a: rename one$"):
        collect(folder, "scans/a,1", "scans_a,1")


def test_patient_and_section_are_read_where_they_stand_and_a_mistake_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("section,patient,scan,label\ntest,p1,a,1\ntraining,p2,b,0\n")
    assert read_scan_labels(file) == [ScanLabel(2, "a", 1, "p1", "test"), ScanLabel(3, "b", 0, "p2", "training")]
    for text, message in (
        ("scan,class\na,1\n", " has no column label: name it"),
        ("scan,label\na,yes\n", ", line 2: the label 'yes' is not one of the classes: give 0 or 1"),
        ("scan,label\na,1\nb,0\na,1\n", ", line 4 names 'a' as line 2 does: keep one"),
        ("scan,label,section\na,1,train\n", ", line 2: the section 'train' is none: give training, validation, test"),
        ("scan,label,section\na,1,test\nb,1,\n", ", line 3 has no section: give every scan one"),
        ("scan,label,patient\na,1,\nb,1,p\n", ", line 2 has no patient: give every scan one"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=f"^{re.escape(f'{file}{message}')}"):
            read_scan_labels(file)
