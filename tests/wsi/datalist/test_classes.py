# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.core.errors import InputError
from scripts.datalist.split import Label
from scripts.wsi.datalist.labels import SlideLabel, as_classes, class_list, coarse_of, in_order, training_note

CSV = Path("labels.csv")
CONFIGS = Path(__file__).parents[3] / "configs" / "wsi"
BRACS = ["N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC"]


def rows(*labels: str, coarse: str = "") -> list[SlideLabel]:
    names = coarse.split() or [""] * len(labels)
    return [SlideLabel(k, f"s{k}", label, coarse=name) for k, (label, name) in enumerate(zip(labels, names), 2)]  # noqa: B905


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
        (
            ["tumor_tissue", "normal_tissue"],
            None,
            "labels.csv has the labels normal_tissue and tumor_tissue: say which is negative and which is positive, in "
            "this order, --classes \"['normal_tissue','tumor_tissue']\"",
        ),
        (
            ["Positive", "negative"],
            None,
            "labels.csv has the labels negative and Positive: say which is negative and which is positive, in this "
            "order, --classes \"['negative','Positive']\"",
        ),
        (
            ["LUSC", "LUAD"],
            None,
            "labels.csv has the labels LUAD and LUSC: say which is negative and which is positive, in this order, "
            "--classes \"['LUAD','LUSC']\"",
        ),
        (
            ["tumor"],
            None,
            "labels.csv has the label 'tumor' alone: add slides of another class, or give --classes",
        ),
        (["", ""], None, "labels.csv has no label in any row: give one per slide"),
        (
            ["1", "nan", "0"],
            None,
            "labels.csv, line 3: the label 'nan' is no number from 0, as others are: correct it, or name the "
            "classes with --classes",
        ),
        (
            ["0", "-1"],
            None,
            "labels.csv, line 3: the label '-1' is no number from 0, as others are: correct it, or name the "
            "classes with --classes",
        ),
        (
            ["2", "1"],
            None,
            "labels.csv has the labels 1, 2: number the classes from 0, or name them, --classes \"['1','2']\"",
        ),
        (["N", "X"], ["N", "PB"], "labels.csv, line 3: the label 'X' is not one of the classes: give N, PB"),
        (["2"], ["N", "PB"], "labels.csv, line 2: the label '2' is not one of the classes: give N, PB"),
    ],
)
def test_labels_that_say_too_little_are_told(labels: list[str], classes: list[str] | None, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        as_classes(rows(*labels), classes, CSV)


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
def test_classes_that_are_none_are_told(typed: Any) -> None:
    message = f"--classes {typed.split(',') if isinstance(typed, str) else typed!r}: give two names or more, such as "
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
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


LAST = ", the first, counts as the class without a finding, --negative_class none says that every class is a finding"


@pytest.mark.parametrize(
    ("classes", "note"),
    [
        (
            ["normal", "LUAD", "LUSC"],
            "3 classes: behind train.json name configs/classes.json and give --class_names "
            f"\"['normal','LUAD','LUSC']\"; normal{LAST}",
        ),
        (
            [0, 1, 2],
            f"3 classes: behind train.json name configs/classes.json and give --class_names \"['0','1','2']\"; 0{LAST}",
        ),
        (
            BRACS,
            "7 classes, those of BRACS: behind train.json name configs/classes.json (or hmil.json) and "
            f"configs/bracs.json; N{LAST}",
        ),
        (
            [0, 1, 2, 3, 4, 5],
            "6 classes, taken for ISUP grades: behind train.json name configs/classes.json (or hmil.json) and "
            f"configs/panda.json; 0{LAST}",
        ),
    ],
)
def test_how_to_train_on_several_classes_is_told(classes: list[Label], note: str) -> None:
    assert training_note(classes) == note


@pytest.mark.parametrize(("name", "classes"), [("bracs.json", BRACS), ("panda.json", list(range(6)))])
def test_the_files_that_are_named_name_these_classes(name: str, classes: list[Label]) -> None:
    hierarchy = json.loads((CONFIGS / name).read_text())["hierarchy"]
    assert [fine for own in hierarchy.values() for fine in own] == [str(label) for label in classes]
    assert f"configs/{name}" in training_note(classes)


def test_a_fine_class_lies_under_one_coarse_class() -> None:
    given = rows("N", "PB", "IC", "N", coarse="benign benign malignant benign")
    named = as_classes(given, None, CSV)
    assert coarse_of(given, named, CSV) == {"N": "benign", "PB": "benign", "IC": "malignant"}
    assert coarse_of(rows("N", "PB", "IC"), named, CSV) == {}


def test_a_fine_class_under_two_coarse_classes_is_told() -> None:
    given = rows("N", "PB", "IC", "PB", coarse="benign benign malignant atypical")
    with pytest.raises(InputError, match=r"^labels.csv, line 5 puts PB under atypical, line 3 under benign: "):
        coarse_of(given, as_classes(given, None, CSV), CSV)
