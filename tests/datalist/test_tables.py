# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.core.errors import InputError
from scripts.datalist.tables import (
    RSNA_SUBTYPES,
    ScanLabel,
    read_majority_labels,
    read_rows,
    read_scan_labels,
    read_slice_labels,
)
from tests.ct.rsna_cohort import TWICE, write_rsna_cohort


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    file = folder / "labels.csv"
    file.write_bytes(text.encode(encoding))
    return file


def rsna_rows(sop: str, *positive: str) -> str:
    return "".join(f"{sop}_{kind},{int(kind in positive)}\n" for kind in RSNA_SUBTYPES)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_is_read_as_spreadsheets_write_it(tmp_path: Path, delimiter: str, encoding: str) -> None:
    lines = ["Scan,other,LABEL", "a,x,1", "", '"b",,0', ",,", " c d ,x, 1 "]
    text = "\r\n".join(lines).replace(",", delimiter)
    file = written(tmp_path, text, encoding)
    assert read_scan_labels(file) == [
        ScanLabel(2, "a", 1, "", ""), ScanLabel(4, "b", 0, "", ""), ScanLabel(6, "c d", 1, "", ""),
    ]  # fmt: skip


def test_patient_and_section_are_read_where_they_stand(tmp_path: Path) -> None:
    file = written(tmp_path, "section,patient,scan,label\ntest,p1,a,1\ntraining,p2,b,0\n")
    assert read_scan_labels(file) == [ScanLabel(2, "a", 1, "p1", "test"), ScanLabel(3, "b", 0, "p2", "training")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan,class\na,1\n", "has no column label: its first line must name scan, label"),
        ("", "has no column scan, label: its first line must name scan, label"),
        ("scan,label\n", "has no rows: give one per scan"),
        ("scan,label\na,yes\n", "line 2: the label 'yes' is not one of the classes: give 0 or 1"),
        ("scan,label\na,1\nb,\n", "line 3: the label '' is not one of the classes: give 0 or 1"),
        ("scan,label\na,1\nb\n", "line 3 has 1 of 2 columns: complete it"),
        ("scan,label\n,1\n", "line 2 names no scan: name it, or take the line out"),
        ("scan,label\na,1\nb,0\na,1\n", "line 4 names 'a' as line 2 does: keep one"),
        ("scan,label,section\na,1,train\n", "line 2: the section 'train' is none: give training, validation, test"),
        (
            "scan,label,section\na,1,test\nb,1,\n",
            "line 3 has no section, other lines have: give every scan one, or leave it out",
        ),
        (
            "scan,label,patient\na,1,\nb,1,p\n",
            "line 2 has no patient, other lines have: give every scan one, or leave it out",
        ),
    ],
)
def test_each_mistake_in_a_table_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}[ ,]+{re.escape(message)}$"):
        read_scan_labels(file)


def test_what_is_no_csv_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "none.csv"
    told = f"cannot read {missing} (No such file or directory): give the labels with --labels FILE"
    with pytest.raises(InputError, match=f"^{re.escape(told)}$"):
        read_scan_labels(missing)
    file = written(tmp_path, "scan,label\nköln,1\n", "latin-1")
    with pytest.raises(InputError, match=r"labels\.csv is no csv in UTF-8: save it as one$"):
        read_scan_labels(file)


def test_an_optional_column_that_is_not_there_is_empty(tmp_path: Path) -> None:
    file = written(tmp_path, "b,a\n1,2\n")
    assert list(read_rows(file, ["a"], ["c", "b"])) == [(2, ["2", "", "1"])]


def test_majority_of_three_readers(tmp_path: Path) -> None:
    votes = [(0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1)]
    lines = [f"CQ500-CT-{number},B1,{a},1,{b},1,{c}" for number, (a, b, c) in enumerate(votes)]
    file = written(tmp_path, "\n".join(["name,Category,R1:ICH,R1:IPH,R2:ICH,R2:IPH,R3:ICH", *lines]))
    rows = read_majority_labels(file)
    assert [row.label for row in rows] == [0, 0, 1, 1]
    assert [row.scan for row in rows] == [row.patient for row in rows] == [f"CQ500-CT-{n}" for n in range(4)]


def test_a_reader_without_an_answer_is_told(tmp_path: Path) -> None:
    file = written(tmp_path, "name,R1:ICH,R2:ICH,R3:ICH\nCQ500-CT-0,1,,0\n")
    with pytest.raises(InputError, match=r"line 2: the label '' is not one of the classes: give 0 or 1$"):
        read_majority_labels(file)
    file = written(tmp_path, "name,R1:ICH\nCQ500-CT-0,1\n")
    with pytest.raises(InputError, match=r"has no column R2:ICH, R3:ICH: its first line must name name, R1:ICH, R2"):
        read_majority_labels(file)


def test_slice_labels_of_a_cohort_are_the_truth(tmp_path: Path) -> None:
    scans = write_rsna_cohort(tmp_path, series=25, slices=8, image_size=8)
    read = read_slice_labels(tmp_path / "stage_2_train.csv", "any")
    assert read.labels == {
        sop: int(bleeds) for scan in scans for sop, bleeds in zip(scan.slices, scan.bleeding, strict=True)
    }
    assert (read.contradictory, len(read.repeated_rows)) == (set(), 6 * TWICE)
    wanted = next(scan.subtype for scan in scans if scan.subtype)
    of_subtype = read_slice_labels(tmp_path / "stage_2_train.csv", wanted)
    assert of_subtype.labels == {
        sop: int(bleeds and scan.subtype == wanted)
        for scan in scans
        for sop, bleeds in zip(scan.slices, scan.bleeding, strict=True)
    }
    assert 0 < sum(of_subtype.labels.values()) < sum(read.labels.values())


@pytest.mark.parametrize("subtype", RSNA_SUBTYPES)
def test_each_subtype_has_its_own_row(tmp_path: Path, subtype: str) -> None:
    file = written(tmp_path, "ID,Label\n" + rsna_rows("ID_1", subtype) + rsna_rows("ID_2"))
    for asked in RSNA_SUBTYPES:
        assert read_slice_labels(file, asked).labels == {"ID_1": int(asked == subtype), "ID_2": 0}


@pytest.mark.parametrize(
    ("rows", "contradictory", "repeated"),
    [
        (rsna_rows("ID_1", "any") * 2, set(), 6),
        (rsna_rows("ID_1", "any") * 3, set(), 12),
        (rsna_rows("ID_1", "any") + "ID_1_any,0\n", {"ID_1"}, 1),
        ("ID_1_any,0\n" + rsna_rows("ID_1", "any"), {"ID_1"}, 1),
        (rsna_rows("ID_1", "any", "subdural") + "ID_1_subdural,0\nID_1_subdural,1\n", {"ID_1"}, 2),
    ],
)
def test_rows_that_repeat_and_rows_that_disagree(
    tmp_path: Path, rows: str, contradictory: set[str], repeated: int
) -> None:
    read = read_slice_labels(written(tmp_path, "ID,Label\n" + rsna_rows("ID_2") + rows), "any")
    assert (read.contradictory, len(read.repeated_rows)) == (contradictory, repeated)
    assert all(row.startswith("ID_1_") for row in read.repeated_rows)
    assert read.labels == {"ID_2": 0, **({} if contradictory else {"ID_1": 1})}


def test_a_slice_without_the_row_that_was_asked_for_has_no_label(tmp_path: Path) -> None:
    file = written(tmp_path, "ID,Label\nID_1_subdural,1\n" + rsna_rows("ID_2"))
    assert read_slice_labels(file, "any").labels == {"ID_2": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ID_1_any,2", "line 2: the label '2' is not one of the classes: give 0 or 1"),
        ("ID_1,1", "line 2: 'ID_1' is not ID_<hex>_<subtype>: give RSNA's stage_2_train.csv"),
        ("any,1", "line 2: 'any' is not ID_<hex>_<subtype>: give RSNA's stage_2_train.csv"),
        ("ID_1_tumour,1", "line 2: 'ID_1_tumour' is not ID_<hex>_<subtype>: give RSNA's stage_2_train.csv"),
    ],
)
def test_rows_that_are_not_of_rsna_are_told(tmp_path: Path, row: str, message: str) -> None:
    file = written(tmp_path, f"ID,Label\n{row}\n")
    with pytest.raises(InputError, match=f"^{re.escape(f'{file}, {message}')}$"):
        read_slice_labels(file, "any")


def test_a_subtype_that_is_none_is_told(tmp_path: Path) -> None:
    kinds = "any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural"
    with pytest.raises(InputError, match=f"^--subtype 'tumour' is not known: give {kinds}$"):
        read_slice_labels(tmp_path / "none.csv", "tumour")
