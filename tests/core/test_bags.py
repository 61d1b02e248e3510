# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Datalists are read and checked before any image is, and each flaw is one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from scripts.core.bags import bags_to_read, balanced_weights, load_bags, number_of_classes
from scripts.core.errors import InputError


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return tmp_path


def datalist(folder: Path, *bags: Any) -> str:
    (folder / "datalist.json").write_text(json.dumps({"training": list(bags)}))
    return str(folder / "datalist.json")


def test_paths_are_relative_to_the_dataset_and_names_are_derived(cohort: Path) -> None:
    file = datalist(cohort, {"image": "a", "label": 1, "annotation": "a.geojson"}, {"image": "b", "label": 0})
    first, second = load_bags(file, "training", str(cohort))
    assert first == {"image": str(cohort / "a"), "label": 1, "annotation": str(cohort / "a.geojson"), "bag_id": "a"}
    assert (second["bag_id"], second["label"]) == ("b", 0)


@pytest.mark.parametrize("name", ["ä" * 100, "b"])
def test_a_name_stays_a_name(cohort: Path, name: str) -> None:
    """It may have 200 bytes; and of one that is also a folder MONAI's own loader would make a path."""
    file = datalist(cohort, {"image": "a", "label": 1, "bag_id": name})
    assert load_bags(file, "training", str(cohort))[0]["bag_id"] == name


@pytest.mark.parametrize(
    ("bag", "message"),
    [
        ({"image": "a", "label": None}, r'"training"\[0\] \(a\) has no "label": give 0 or 1'),
        ({"image": "a", "label": 2}, r"has the label 2, which is not one of the classes: give 0 or 1"),
        ({"image": "a", "label": "yes"}, r"has the label 'yes', which is not one of the classes"),
        ({"image": "a", "label": 1, "bag_id": "../../evil"}, r"the bag_id '../../evil', which names no file"),
        ({"image": "a", "label": 1, "bag_id": "ä" * 101}, r"the bag_id 'ä{101}', which .* at most 200 bytes$"),
        ({"image": "a", "label": 1, "bag_id": 7}, r"the bag_id 7, which names no file"),
        ({"label": 1}, r'"training"\[0\] names no "image"'),
        ({"image": "gone", "label": 1}, r"gone does not exist: check --dataset_dir"),
        ({"image": [], "label": 1}, r'"training"\[0\] names no "image"'),
        ({"image": ["a", 1], "label": 1}, r'"training"\[0\] names no "image"'),
        ({"image": ["a", "b"], "label": 1}, r'\[0\] is a list of files without a name: give it a "bag_id"$'),
        *((given, r'"training"\[0\] is .*, not an object: give \{"image": ') for given in ("a", 3, None, ["a"])),
    ],
)
def test_each_flaw_of_a_bag_is_told(cohort: Path, bag: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_bags(datalist(cohort, bag), "training", str(cohort))


def test_a_scan_may_be_a_list_of_files(cohort: Path) -> None:
    for name in ("a/1.dcm", "a/2.dcm", "b/1.dcm"):
        (cohort / name).touch()
    bag: dict[str, Any] = {"image": ["a/2.dcm", "b/1.dcm", "a/1.dcm"], "label": 1, "bag_id": "x"}
    (loaded,) = load_bags(datalist(cohort, bag), "training", str(cohort))
    assert loaded["image"] == [str(cohort / "a/2.dcm"), str(cohort / "b/1.dcm"), str(cohort / "a/1.dcm")]
    assert bag["image"][0] == "a/2.dcm"

    bag["image"] = ["a/1.dcm", "a/3.dcm", "c/1.dcm"]
    with pytest.raises(InputError, match=r"\(x\): 2 of its 3 files do not exist \(first .*a/3\.dcm\): check --dataset"):
        load_bags(datalist(cohort, bag), "training", str(cohort))


def test_each_folder_is_listed_once(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million files in one folder not each is asked for."""
    for index in range(50):
        (cohort / "a" / f"{index}.dcm").touch()
    bags = [{"image": [f"a/{10 * n + k}.dcm" for k in range(10)], "label": 0, "bag_id": f"x{n}"} for n in range(5)]
    listed: list[str] = []
    listdir = os.listdir

    def record(folder: str) -> list[str]:
        listed.append(folder)
        return listdir(folder)

    monkeypatch.setattr("os.listdir", record)
    assert len(load_bags(datalist(cohort, *bags), "training", str(cohort))) == 5
    assert listed == [str(cohort / "a")]


def test_flaws_of_the_file_are_told(cohort: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the datalist .*none\.json \(No such file"):
        load_bags(str(cohort / "none.json"), "training", str(cohort))
    (cohort / "text.json").write_text("training: a")
    with pytest.raises(InputError, match=r"text\.json is not JSON"):
        load_bags(str(cohort / "text.json"), "training", str(cohort))
    with pytest.raises(InputError, match='has no bags under "test"'):
        load_bags(datalist(cohort), "test", str(cohort))


def test_inference_finds_bags_unless_a_datalist_names_them(cohort: Path) -> None:
    def find(folder: str) -> list[dict[str, Any]]:
        return [{"image": folder, "bag_id": "found"}]

    assert bags_to_read(find, str(cohort), None, "test")[0]["bag_id"] == "found"
    file = datalist(cohort, {"image": "a"})
    assert bags_to_read(find, str(cohort), file, "training")[0]["bag_id"] == "a"


def test_null_says_not_known_and_labels_of_instances_are_left_as_they_are(cohort: Path) -> None:
    file = datalist(cohort, {"image": "a", "label": None, "annotation": None, "instance_label": None})
    assert load_bags(file, "training", str(cohort), labelled=False) == [{"image": str(cohort / "a"), "bag_id": "a"}]
    for given in ([0, 1, 1], {"1.2.3": 1}):
        file = datalist(cohort, {"image": "a", "label": 1, "instance_label": given})
        assert load_bags(file, "training", str(cohort))[0]["instance_label"] == given


def test_two_bags_of_one_name_are_told(cohort: Path) -> None:
    file = datalist(cohort, {"image": "a", "label": 1, "bag_id": "x"}, {"image": "b", "label": 1, "bag_id": "x"})
    with pytest.raises(InputError, match='would both be named x: give each a "bag_id" of its own'):
        load_bags(file, "training", str(cohort))
    for name in ("a/1", "a/2", "b/1"):
        (cohort / name).touch()
    images: list[Any] = [["a/1", "a/2"], ["b/1"], "a"]
    lists = [{"image": image, "label": 1, "bag_id": "x"} for image in images]
    for pair, named in ((lists[:2], r"a/1 with 1 more and .*b/1 would"), (lists[1:], r"b/1 and .*a would")):
        with pytest.raises(InputError, match=named):
            load_bags(datalist(cohort, *pair), "training", str(cohort))
    assert len(load_bags(datalist(cohort, lists[0], lists[0]), "training", str(cohort))) == 2  # one bag, twice


@pytest.mark.parametrize(
    ("label", "names", "number"),
    [
        ("DCIS", ("N", "DCIS"), 1),
        (1, ("N", "DCIS"), 1),
        ("2", ("0", "1", "2"), 2),
        (2, ("0", "1", "2"), 2),
        (1, ("1", "2", "3"), 0),  # a name goes before a number
        (1.0, None, 1),
        ("0", None, 0),
        *((label, ("N", "DCIS"), None) for label in ("LCIS", 2, -1, 0.5)),
    ],
)
def test_a_label_is_the_name_of_a_class_or_its_number(
    cohort: Path, label: object, names: tuple[str, ...] | None, number: int | None
) -> None:
    file = datalist(cohort, {"image": "a", "label": label})
    if number is None:
        with pytest.raises(InputError, match="is not one of the classes: give one of N, DCIS"):
            load_bags(file, "training", str(cohort), class_names=names)
    else:
        assert load_bags(file, "training", str(cohort), class_names=names)[0]["label"] == number


def test_a_bag_of_several_slides_may_lack_an_annotation_of_some(cohort: Path) -> None:
    bag = {"bag_id": "patient", "image": ["a", "b"], "label": 1, "annotation": [None, "b.xml"]}
    bag["instance_label"] = ["a.npy", "b.npy"]
    (got,) = load_bags(datalist(cohort, bag), "training", str(cohort))
    assert got["image"] == [str(cohort / "a"), str(cohort / "b")]
    assert got["annotation"] == [None, str(cohort / "b.xml")]
    assert got["instance_label"] == [str(cohort / "a.npy"), str(cohort / "b.npy")]


def test_balanced_classes_weigh_alike_and_a_bag_weighs_one_on_average() -> None:
    bags = [{"label": label} for label in [0] * 6 + [1] * 3 + [2]]
    weights = balanced_weights(bags, ("a", "b", "c"))
    assert [6 * weights[0], 3 * weights[1], 1 * weights[2]] == pytest.approx([10 / 3] * 3)
    assert sum(weights[bag["label"]] for bag in bags) == pytest.approx(len(bags))
    with pytest.raises(InputError, match="no bag to train on has the label d"):
        balanced_weights(bags, ("a", "b", "c", "d"))


@pytest.mark.parametrize("names", [None, ("a",)])
def test_several_classes_need_names(names: tuple[str, ...] | None) -> None:
    assert number_of_classes(("a", "b", "c")) == 3
    with pytest.raises(InputError, match=r"name configs/bracs.json .* or give yours with --class_names"):
        number_of_classes(names)
