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
    in_order,
    read_patient_labels,
    read_slide_labels,
    read_splits,
    training_note,
)
from tests.shared_data import ROOT
from tests.wsi.foreign_features import write

CSV = Path("labels.csv")
BRACS = ["N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC"]


def test_all_columns_that_may_be_given(tmp_path: Path) -> None:
    heading = "Label;Case_ID;Slide_ID;Split;Coarse;Annotation"
    lines = heading, "IC;p1;x/s1.h5;VAL;malignant;a/s1.geojson", "", "N;p2;s2.svs;train;benign;"
    rows = read_slide_labels(write(tmp_path / "l.csv", *lines))
    assert rows == [
        SlideLabel(2, "x/s1.h5", "IC", "p1", "validation", "malignant", "a/s1.geojson"),
        SlideLabel(4, "s2.svs", "N", "p2", "training", "benign", ""),
    ]
    assert [row.name for row in rows] == ["s1", "s2"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,label", "a,1"], " has no columns slide and label (label, name): "),
        (["slide,label"], " has no rows: give one per slide"),
        (["image,label", "a,1", "a.svs,0"], ", line 3 names 'a' as line 2 does: keep one"),
        (["FILENAME,label", ",1"], ", line 2 names no slide: name it"),
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


@pytest.mark.parametrize(
    ("clinical", "slides", "message"),
    [
        ("PATIENT,label p1,a p1,b", "PATIENT,FILENAME p1,x", "line 3 names 'p1' as line 2 does: keep"),
        ("PATIENT,MSI p1,a", "PATIENT,FILENAME p1,x", "has no columns patient and label .* or give --label_column"),
        ("PATIENT,label p1,a", "ID,FILENAME p1,x", "has no columns patient and slide"),
        ("PATIENT,label p1,a", "PATIENT,FILENAME p2,x", "names no patient of .*: give the slide table of"),
        ("PATIENT,label p1,a", "PATIENT,FILENAME p1,x.h5 p1,x.svs", "line 3 names 'x' as line 2 does"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, clinical: str, slides: str, message: str) -> None:
    tables = write(tmp_path / "c.csv", *clinical.split()), write(tmp_path / "s.csv", *slides.split())
    with pytest.raises(InputError, match=message):
        read_patient_labels(*tables)


BOOLEAN = "s1,True,False,False s2.svs,False,True,False s3,False,False,True s4,False,False,False"


@pytest.mark.parametrize(
    ("lines", "sections"),
    [
        # CLAM's: columns of unlike length, and a number of a slide that pandas wrote as a float
        (",train,val,test 0,s1,s4.svs,7.0 1,s2,,8", {"training": "s1 s2", "validation": "s4", "test": "7 8"}),
        (f"slide_id,train,val,test {BOOLEAN}", {"training": "s1", "validation": "s2", "test": "s3"}),
        (",bag_name,split 0,b1,train 1,b2,test 2,b3,val", {"training": "b1", "validation": "b3", "test": "b2"}),
    ],
)
def test_the_splits_of_clam_and_of_torchmil(tmp_path: Path, lines: str, sections: dict[str, str]) -> None:
    path = write(tmp_path / "splits_0.csv", *lines.split())
    assert read_splits(path) == {name: section for section, own in sections.items() for name in own.split()}
    with pytest.raises(InputError, match=r"counts slides, it does not name them: give CLAM's splits_0\.csv"):
        read_splits(write(tmp_path / "splits_0_descriptor.csv", ",train,val,test", "normal,10,2,3"))


CELLS = st.sampled_from(["", "s1", "s2.svs", "1", "0", "True", "train", "test", "é", '"', "a b", "7.0", "\0", "nan"])
HEADINGS = st.sampled_from(["slide,label,patient", "slide,label,split", "bag_name,split", ",train,val,test", "x;y", ""])


@given(HEADINGS, st.lists(st.lists(CELLS, max_size=5), max_size=5), st.booleans())
def test_any_csv_is_read_or_refused_in_one_line(heading: str, rows: list[list[str]], labels: bool) -> None:
    with TemporaryDirectory() as folder:
        path = write(Path(folder, "some.csv"), heading, *map(",".join, rows))
        try:
            found, message = len(read_slide_labels(path) if labels else read_splits(path)), ""
        except InputError as error:
            found, message = 0, str(error)
    assert found or (str(path) in message and "\n" not in message)


def rows(labels: str, coarse: str = "") -> list[SlideLabel]:
    pairs = enumerate(zip_longest(labels.split(" "), coarse.split(), fillvalue=""), 2)
    return [SlideLabel(k, f"s{k}", label, coarse=name) for k, (label, name) in pairs]


@pytest.mark.parametrize(
    ("labels", "classes", "wanted", "order"),
    [
        ("0", None, [0], [0, 1]),
        ("1.0 0.0", None, [1, 0], [0, 1]),
        ("5 0 3", None, [5, 0, 3], [0, 1, 2, 3, 4, 5]),
        ("LUSC normal LUAD", None, ["LUSC", "normal", "LUAD"], ["normal", "LUAD", "LUSC"]),
        (" ".join(BRACS[::-1]), None, BRACS[::-1], BRACS),
        ("normal tumor", ["tumor", "normal"], [1, 0], [0, 1]),
        ("0 1", ["normal", "tumor"], [0, 1], [0, 1]),
        ("1 2", ["1", "2"], [0, 1], [0, 1]),
        ("2 N", ["N", "PB", "IC"], ["IC", "N"], ["N", "PB", "IC"]),
    ],
)
def test_labels_become_numbers_or_stay_names(
    labels: str, classes: list[str] | None, wanted: list[Label], order: list[Label]
) -> None:
    found = as_classes(rows(f" {labels}"), classes, CSV)  # a row without a label has none
    assert found == dict(enumerate(wanted, 3))
    assert in_order(found.values(), classes) == order


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ("tumor_tissue normal_tissue", None, " has two labels: .* --classes \"['normal_tissue','tumor_tissue']\""),
        ("tumor", None, " has the label 'tumor' alone: "),
        (" ", None, " has no label in any row: "),
        ("1 nan 0", None, ", line 3: the label 'nan' is no number from 0, as others are: "),
        ("0 -1", None, ", line 3: the label '-1' is no number from 0, as others are: "),
        ("2 1", None, " has no label 0: .* --classes \"['1','2']\""),
        ("N X", ["N", "PB"], ", line 3: the label 'X' is not one of the classes: give N, PB"),
    ],
)
def test_labels_that_say_too_little_are_refused(labels: str, classes: list[str] | None, message: str) -> None:
    pattern = re.escape(f"{CSV}{message}").replace(re.escape(".*"), ".*")
    with pytest.raises(InputError, match=f"^{pattern}"):
        as_classes(rows(labels), classes, CSV)


def test_classes_may_be_typed_in_several_ways() -> None:
    typed: Any
    assert class_list(None) is None
    for typed in (["N", "PB", "1"], ("N", "PB", 1), "N, PB,1"):
        assert class_list(typed) == ["N", "PB", "1"]
    for typed in ("tumor", ["tumor"], [], ["a", "a"], ["a", ""], 3, True, {"a": "b"}):
        with pytest.raises(InputError, match=r"^--classes .*: give two names or more, such as "):
            class_list(typed)


@pytest.mark.parametrize(
    "names",  # the first of them first, the others by alphabet
    ["Normal Benign InSitu Invasive", "benign abnormal malignant", "no_tumor ASC NOS", "negative itc macro micro",
     "pN0 pN1 pN2", "wild-type a mutated", "A N1 N2", "nontumor A B"],
)  # fmt: skip
def test_the_class_without_a_finding_comes_first(names: str) -> None:
    assert in_order(names.split()[::-1], None) == names.split()


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        (["normal", "LUAD", "LUSC"], "configs/classes.json and give --class_names \"['normal','LUAD','LUSC']\""),
        ([0, 1, 2], "configs/classes.json and give --class_names \"['0','1','2']\""),
        (BRACS, "configs/classes.json (or hmil.json) and configs/bracs.json"),
        (list(range(6)), "configs/classes.json (or hmil.json) and configs/panda.json"),
    ],
)
def test_a_note_says_how_to_train_on_several_classes(classes: list[Label], named: str) -> None:
    note = training_note(classes)
    assert note.startswith(f"{len(classes)} classes")
    assert f"{named}; {classes[0]}, the first, counts as the class without a finding" in note
    if len(classes) > 3:  # the file that is named names these classes
        hierarchy = json.loads((ROOT / "configs" / "wsi" / Path(named).name).read_text())["hierarchy"]
        assert [fine for own in hierarchy.values() for fine in own] == [str(label) for label in classes]


def test_a_fine_class_lies_under_one_coarse_class() -> None:
    given = rows("N PB IC N", coarse="benign benign malignant benign")
    named = as_classes(given, None, CSV)
    assert coarse_of(given, named, CSV) == {"N": "benign", "PB": "benign", "IC": "malignant"}
    assert coarse_of(rows("N PB IC"), named, CSV) == {}
    with pytest.raises(InputError, match=r"^labels.csv, line 5 puts N under atypical, line 2 under benign: "):
        coarse_of(rows("N PB IC N", coarse="benign benign malignant atypical"), named, CSV)
