# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import json
import re
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.errors import InputError
from scripts.datalist.split import Label
from scripts.wsi.datalist.labels import (
    SlideLabel,
    as_classes,
    class_list,
    coarse_of,
    holds_labels,
    holds_splits,
    in_order,
    read_patient_labels,
    read_slide_labels,
    read_splits,
    training_note,
)
from tests.shared_data import ROOT
from tests.wsi.feature_trees import write

CSV = Path("labels.csv")
BRACS = ["N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC"]


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
        (["name,label", "a,1"], " has no columns slide and label (label, name): "),
        (["slide,label"], " has no rows: give one per slide"),
        (["slide,label", "a,1", "a.svs,0"], ", line 3 names 'a' as line 2 does: keep one"),
        (["slide,label", ",1"], ", line 2 names no slide: name it"),
        (["slide,label,patient", "a,1,p", "b,1,"], ", line 3 has no patient: give every slide one"),
        (["slide,label,section", "a,1,dev", "b,1,"], ", line 2: the section 'dev' is none: give training"),
        (["slide,label", "a"], ", line 2 has 1 of 2 columns: complete it"),
        (["slide,class", "a,train"], " has no columns train, val, test or bag_name, split"),
        (["bag_name,split"], " puts no slide into a section"),
        (["bag_name,split", "a,train", "a,test"], ", line 3 puts a into test, before training: keep one"),
        ([",train,val,test", "0,a,,", "1,b,a,"], ", line 3 puts a into validation, before training: keep one"),
        (["bag_name,split", "a,fold1"], ", line 2: the section 'fold1' is none: give training"),
    ],
)
def test_a_csv_that_is_wrong_is_refused_with_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path / "some.csv", *lines)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}{message}')}"):
        (read_slide_labels if "label" in lines[0] else read_splits)(path)


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
        (["slide,label", "x,a"], ["PATIENT,FILENAME", "p1,x"], "has no columns patient and label"),
        (["PATIENT,MSI", "p1,a"], ["PATIENT,FILENAME", "p1,x"], "or give --label_column"),
        (["PATIENT,label", "p1,a"], ["ID,FILENAME", "p1,x"], "has no columns patient and slide"),
        (["PATIENT,label", "p1,a"], ["PATIENT,FILENAME", "p2,x"], "names no patient of .*: give the slide table of"),
        (["PATIENT,label", "p1,a"], ["PATIENT,FILENAME", "p1,x.h5", "p1,x.svs"], "line 3 names 'x' as line 2 does"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    tmp_path: Path, clinical: list[str], slides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_patient_labels(write(tmp_path / "c.csv", *clinical), write(tmp_path / "s.csv", *slides))


def test_clams_counts_of_slides_are_no_sections(tmp_path: Path) -> None:
    path = write(tmp_path / "splits_0_descriptor.csv", ",train,val,test", "normal,10,2,3", "tumor,11,2,3")
    with pytest.raises(InputError, match=r"counts slides, it does not name them: give CLAM's splits_0\.csv"):
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


CELLS = st.sampled_from(["", "s1", "s2.svs", "1", "0", "True", "train", "test", "é", '"', "a b", "7.0", "\0", "nan"])
HEADINGS = st.sampled_from(
    ["slide,label", "slide_id,label,patient", "slide,label,split", "bag_name,split", ",train,val,test", "x;y", ""]
)


@given(HEADINGS, st.lists(st.lists(CELLS, max_size=5), max_size=5), st.booleans())
def test_any_csv_is_read_or_refused_in_one_line(heading: str, rows: list[list[str]], labels: bool) -> None:
    with TemporaryDirectory() as folder:
        path = write(Path(folder, "some.csv"), heading, *map(",".join, rows))
        try:
            found, message = len(read_slide_labels(path) if labels else read_splits(path)), ""
        except InputError as error:
            found, message = 0, str(error)
    assert found or (str(path) in message and "\n" not in message)


def test_the_kind_of_a_csv_shows_in_its_columns() -> None:
    labels = [{"case_id", "slide_id", "label"}, {"slide", "label", "split"}, {"image", "label", "train", "test"}]
    splits = [{"", "train", "val", "test"}, {"bag_name", "split"}, {"train", "test"}]
    neither = [{"slide", "class"}, {"scan", "label"}, {"train"}, set()]
    for columns in [*labels, *splits, *neither]:
        assert holds_labels(columns) == (columns in labels)
        assert holds_splits(columns) == (columns in splits)


def rows(*labels: str, coarse: str = "") -> list[SlideLabel]:
    pairs = enumerate(zip_longest(labels, coarse.split(), fillvalue=""), 2)
    return [SlideLabel(k, f"s{k}", label, coarse=name) for k, (label, name) in pairs]


@pytest.mark.parametrize(
    ("labels", "classes", "wanted", "order"),
    [
        (["0", "1", "1"], None, [0, 1, 1], [0, 1]),
        (["1", "1"], None, [1, 1], [0, 1]),
        (["0"], None, [0], [0, 1]),
        (["1.0", "0.0", ""], None, [1, 0], [0, 1]),
        (["5", "0", "3"], None, [5, 0, 3], [0, 1, 2, 3, 4, 5]),
        (["N", "IC", "PB"], None, ["N", "IC", "PB"], ["N", "IC", "PB"]),
        (["LUSC", "normal", "LUAD"], None, ["LUSC", "normal", "LUAD"], ["normal", "LUAD", "LUSC"]),
        (["KIRC", "KIRP", "KICH"], None, ["KIRC", "KIRP", "KICH"], ["KICH", "KIRC", "KIRP"]),
        (["IC", "DCIS", "ADH", "FEA", "UDH", "PB", "N"], None, ["IC", "DCIS", "ADH", "FEA", "UDH", "PB", "N"], BRACS),
        (["N", "IC", "PB"], ["N", "PB", "UDH", "IC"], ["N", "IC", "PB"], ["N", "PB", "UDH", "IC"]),
        (["normal", "tumor", "normal"], ["normal", "tumor"], [0, 1, 0], [0, 1]),
        (["normal", "tumor", "normal"], ["tumor", "normal"], [1, 0, 1], [0, 1]),
        (["0", "1"], ["normal", "tumor"], [0, 1], [0, 1]),
        (["1", "2"], ["1", "2"], [0, 1], [0, 1]),
        (["2", "N"], ["N", "PB", "IC"], ["IC", "N"], ["N", "PB", "IC"]),
    ],
)
def test_labels_become_numbers_or_stay_names(
    labels: list[str], classes: list[str] | None, wanted: list[Label], order: list[Label]
) -> None:
    found = as_classes(rows(*labels), classes, CSV)
    assert list(found.values()) == wanted
    assert [type(label) for label in found.values()] == [type(label) for label in wanted]
    assert list(found) == [k for k, label in enumerate(labels, 2) if label]
    assert in_order(found.values(), classes) == order


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (["tumor_tissue", "normal_tissue"], None, " has two labels: .* --classes \"['normal_tissue','tumor_tissue']\""),
        (["Positive", "negative"], None, " has two labels: .* --classes \"['negative','Positive']\""),
        (["LUSC", "LUAD"], None, " has two labels: .* --classes \"['LUAD','LUSC']\""),
        (["tumor"], None, " has the label 'tumor' alone: "),
        (["", ""], None, " has no label in any row: "),
        (["1", "nan", "0"], None, ", line 3: the label 'nan' is no number from 0, as others are: "),
        (["0", "-1"], None, ", line 3: the label '-1' is no number from 0, as others are: "),
        (["2", "1"], None, " has no label 0: .* --classes \"['1','2']\""),
        (["N", "X"], ["N", "PB"], ", line 3: the label 'X' is not one of the classes: give N, PB"),
        (["2"], ["N", "PB"], ", line 2: the label '2' is not one of the classes: give N, PB"),
    ],
)
def test_labels_that_say_too_little_are_refused(labels: list[str], classes: list[str] | None, message: str) -> None:
    with pytest.raises(InputError) as refused:  # noqa: PT011
        as_classes(rows(*labels), classes, CSV)
    first, _, last = message.partition(".*")
    assert str(refused.value).startswith(f"labels.csv{first}")
    assert last in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (None, None),
        (["N", "PB"], ["N", "PB"]),
        (("N", "PB", "IC"), ["N", "PB", "IC"]),
        ("normal_tissue, tumor-tissue", ["normal_tissue", "tumor-tissue"]),
        ([0, 1], ["0", "1"]),
    ],
)
def test_classes_may_be_typed_in_several_ways(typed: Any, wanted: list[str] | None) -> None:
    assert class_list(typed) == wanted


@pytest.mark.parametrize("typed", ["tumor", ["tumor"], [], ["a", "a"], ["a", ""], 3, True, {"a": "b"}])
def test_classes_that_are_none_are_refused(typed: Any) -> None:
    with pytest.raises(InputError, match=r"^--classes .*: give two names or more, such as "):
        class_list(typed)


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["Benign", "InSitu", "Invasive", "Normal"], "Normal"),
        (["abnormal", "benign", "malignant"], "benign"),
        (["ASC", "NOS", "no_tumor"], "no_tumor"),
        (["Healthy tissue", "Nodal", "ascending"], "Healthy tissue"),
        (["itc", "macro", "micro", "negative"], "negative"),
        (["pN1", "pN0", "pN2"], "pN0"),
        (["mutated", "a", "wild-type"], "wild-type"),
        (["N1", "N2", "A"], "A"),
        (["nontumor", "B", "A"], "nontumor"),
    ],
)
def test_the_class_without_a_finding_comes_first(names: list[str], first: str) -> None:
    assert in_order(names, None) == [first, *sorted(set(names) - {first})]


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        (["normal", "LUAD", "LUSC"], "classes.json and give --class_names \"['normal','LUAD','LUSC']\"; normal,"),
        ([0, 1, 2], "configs/classes.json and give --class_names \"['0','1','2']\"; 0,"),
        (BRACS, "configs/classes.json (or hmil.json) and configs/bracs.json; N,"),
        (list(range(6)), "configs/classes.json (or hmil.json) and configs/panda.json; 0,"),
    ],
)
def test_a_note_says_how_to_train_on_several_classes(classes: list[Label], named: str) -> None:
    note = training_note(classes)
    assert note.startswith(f"{len(classes)} classes")
    assert named in note


@pytest.mark.parametrize(("name", "classes"), [("bracs.json", BRACS), ("panda.json", list(range(6)))])
def test_the_files_that_are_named_name_these_classes(name: str, classes: list[Label]) -> None:
    hierarchy = json.loads((ROOT / "configs" / "wsi" / name).read_text())["hierarchy"]
    assert [fine for own in hierarchy.values() for fine in own] == [str(label) for label in classes]
    assert f"configs/{name}" in training_note(classes)


def test_a_fine_class_lies_under_one_coarse_class() -> None:
    given = rows("N", "PB", "IC", "N", coarse="benign benign malignant benign")
    named = as_classes(given, None, CSV)
    assert coarse_of(given, named, CSV) == {"N": "benign", "PB": "benign", "IC": "malignant"}
    assert coarse_of(rows("N", "PB", "IC"), named, CSV) == {}


def test_a_fine_class_under_two_coarse_classes_is_refused() -> None:
    given = rows("N", "PB", "IC", "PB", coarse="benign benign malignant atypical")
    with pytest.raises(InputError, match=r"^labels.csv, line 5 puts PB under atypical, line 3 under benign: "):
        coarse_of(given, as_classes(given, None, CSV), CSV)
