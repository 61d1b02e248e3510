# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.errors import InputError
from scripts.wsi.datalist.labels import (
    SlideLabel,
    holds_labels,
    holds_splits,
    read_patient_labels,
    read_slide_labels,
    read_splits,
)
from tests.wsi.feature_trees import write


def refused(path: Path, message: str) -> None:
    read = read_splits if "split" in path.name else read_slide_labels
    with pytest.raises(InputError, match=f"^{re.escape(message.format(path=path))}$"):
        read(path)


def test_the_csv_of_clam(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "case_id,slide_id,label", "patient_0,slide_1,tumor_tissue", "patient_1,a.svs,0")
    first, second = read_slide_labels(path)
    assert first == SlideLabel(2, "slide_1", "tumor_tissue", "patient_0")
    assert (first.name, second.name, second.line) == ("slide_1", "a", 3)


def test_all_columns_that_may_be_given(tmp_path: Path) -> None:
    path = write(
        tmp_path / "l.csv",
        "Label;Patient;Slide;Split;Coarse;Annotation",
        "IC;p1;x/s1.h5;VAL;malignant;a/s1.geojson",
        "",
        "N;p2;s2;train;benign;",
    )
    assert read_slide_labels(path) == [
        SlideLabel(2, "x/s1.h5", "IC", "p1", "validation", "malignant", "a/s1.geojson"),
        SlideLabel(4, "s2", "N", "p2", "training", "benign", ""),
    ]


@pytest.mark.parametrize("column", ["slide_id", "slide", "image", "bag_name", "wsi", "FILENAME"])
def test_the_column_of_the_slide_has_several_names(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "l.csv", f"{column},label", "s1,1")
    assert [row.name for row in read_slide_labels(path)] == ["s1"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["name,label", "a,1"],
            "{path} names no column label, or none of slide_id, slide, image in its first line (label, name): "
            "name its columns slide and label, or give the name of the labels with --label_column, "
            "or a csv of patients and slides with --slide_table",
        ),
        (["slide,label"], "{path} has no rows: give one per slide"),
        (["slide,label", "a,1", "a.svs,0"], "{path}, line 3 names 'a' as line 2 does: keep one"),
        (["slide,label", ",1"], "{path}, line 2 names no slide: name it, or take the line out"),
        (
            ["slide,label,patient", "a,1,p", "b,1,"],
            "{path}, line 3 has no patient, other lines have: give every slide one, or leave it out",
        ),
        (
            ["slide,label,section", "a,1,dev", "b,1,"],
            "{path}, line 2: the section 'dev' is none: give training, validation, test",
        ),
        (["slide,label", "a"], "{path}, line 2 has 1 of 2 columns: complete it"),
    ],
)
def test_a_csv_of_labels_that_is_wrong_is_told(tmp_path: Path, lines: list[str], message: str) -> None:
    refused(write(tmp_path / "l.csv", *lines), message)


def test_the_two_tables_of_stamp(tmp_path: Path) -> None:
    """A row for each patient with labels of many kinds, and a row for each slide."""
    clinical = write(tmp_path / "clini.csv", "PATIENT,AGE,isMSIH", "p1,5,MSIH", "p2,6,nonMSIH", "p3,7,MSIH", "p4,8,NA")
    slides = write(tmp_path / "slide.csv", "PATIENT,FILENAME", "p1,a.h5", "p1,b.h5", "p2,c.h5", "p9,d.h5", "p4,e.h5")
    rows, without_slide = read_patient_labels(clinical, slides, "isMSIH")
    assert rows == [
        SlideLabel(2, "a.h5", "MSIH", "p1"), SlideLabel(2, "b.h5", "MSIH", "p1"),
        SlideLabel(3, "c.h5", "nonMSIH", "p2"), SlideLabel(0, "d.h5", "", "p9"), SlideLabel(5, "e.h5", "", "p4"),
    ]  # fmt: skip
    assert without_slide == ["p3"]


@pytest.mark.parametrize(
    ("clinical", "slides", "message"),
    [
        (["PATIENT,label", "p1,a", "p1,b"], ["PATIENT,FILENAME", "p1,x"], "line 3 names 'p1' as line 2 does: keep"),
        (
            ["slide,label", "x,a"],
            ["PATIENT,FILENAME", "p1,x"],
            "none of patient, patient_id, case_id in its first",
        ),
        (["PATIENT,MSI", "p1,a"], ["PATIENT,FILENAME", "p1,x"], "or give the name of the labels with --label_column"),
        (["PATIENT,label", "p1,a"], ["ID,FILENAME", "p1,x"], "name its columns patient and slide"),
        (
            ["PATIENT,label", "p1,a"],
            ["PATIENT,FILENAME", "p2,x"],
            "names no patient of .*: give the slide table of",
        ),
        (["PATIENT,label", "p1,a"], ["PATIENT,FILENAME", "p1,x.h5", "p1,x.svs"], "line 3 names 'x' as line 2 does"),
    ],
)
def test_tables_that_do_not_fit_are_told(tmp_path: Path, clinical: list[str], slides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_patient_labels(write(tmp_path / "c.csv", *clinical), write(tmp_path / "s.csv", *slides))


def test_clams_counts_of_slides_are_no_sections(tmp_path: Path) -> None:
    path = write(tmp_path / "splits_0_descriptor.csv", ",train,val,test", "normal,10,2,3", "tumor,11,2,3")
    with pytest.raises(
        InputError, match="counts the slides of CLAM's sections, it does not name them: give the splits_0"
    ):
        read_splits(path)


def test_the_splits_of_clam(tmp_path: Path) -> None:
    """Columns of unlike length, and a number of a slide that pandas wrote as a float."""
    path = write(tmp_path / "splits_0.csv", ",train,val,test", "0,s1,s4.svs,7.0", "1,s2,,8", "2,s3,,")
    assert read_splits(path) == {
        "s1": "training", "s2": "training", "s3": "training", "s4": "validation", "7": "test", "8": "test",
    }  # fmt: skip


@pytest.mark.parametrize("index", ["", "slide_id"])
def test_the_boolean_splits_of_clam(tmp_path: Path, index: str) -> None:
    path = write(
        tmp_path / "splits_0_bool.csv",
        f"{index},train,val,test",
        "s1,True,False,False",
        "s2,False,True,False",
        "s3.svs,False,False,True",
        "s4,False,False,False",
    )
    assert read_splits(path) == {"s1": "training", "s2": "validation", "s3": "test"}


@pytest.mark.parametrize("heading", ["bag_name,split", ",bag_name,split"])
def test_the_splits_of_torchmil(tmp_path: Path, heading: str) -> None:
    number = "0," if heading.startswith(",") else ""
    path = write(tmp_path / "splits.csv", heading, f"{number}b1,train", f"{number}b2,test", f"{number}b3,val")
    assert read_splits(path) == {"b1": "training", "b2": "test", "b3": "validation"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["slide,label", "a,1"],
            "{path} names neither train, val, test (CLAM) nor bag_name, split (torchmil) in its first line: "
            "give such a csv with --splits FILE",
        ),
        (["bag_name,split"], "{path} puts no slide into a section: give another with --splits FILE"),
        (
            ["bag_name,split", "a,train", "a,test"],
            "{path}, line 3 puts a into test, line 2 into training: keep one",
        ),
        (
            [",train,val,test", "0,a,,", "1,b,a,"],
            "{path}, line 3 puts a into validation, line 2 into training: keep one",
        ),
        (
            ["bag_name,split", "a,fold1"],
            "{path}, line 2: the section 'fold1' is none: give training, validation, test",
        ),
    ],
)
def test_splits_that_are_wrong_are_told(tmp_path: Path, lines: list[str], message: str) -> None:
    refused(write(tmp_path / "splits.csv", *lines), message)


CELLS = st.sampled_from(["", "s1", "s2.svs", "1", "0", "True", "train", "test", "é", '"', "a b", "7.0", "\0", "nan"])
HEADINGS = st.sampled_from(
    ["slide,label", "slide_id,label,patient", "slide,label,split", "bag_name,split", ",train,val,test", "x;y", ""]
)


@given(HEADINGS, st.lists(st.lists(CELLS, max_size=5), max_size=5), st.booleans())
def test_any_csv_is_read_or_told_in_one_line(heading: str, rows: list[list[str]], labels: bool) -> None:
    with TemporaryDirectory() as folder:
        path = write(Path(folder, "some.csv"), heading, *map(",".join, rows))
        try:
            found, told = len(read_slide_labels(path) if labels else read_splits(path)), ""
        except InputError as error:
            found, told = 0, str(error)
    assert found or (str(path) in told and "\n" not in told)


def test_the_kind_of_a_csv_shows_in_its_columns() -> None:
    labels = [{"case_id", "slide_id", "label"}, {"slide", "label", "split"}, {"image", "label", "train", "test"}]
    splits = [{"", "train", "val", "test"}, {"bag_name", "split"}, {"train", "test"}]
    neither = [{"slide", "class"}, {"scan", "label"}, {"train"}, set()]
    for columns in [*labels, *splits, *neither]:
        assert holds_labels(columns) == (columns in labels)
        assert holds_splits(columns) == (columns in splits)
