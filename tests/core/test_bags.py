# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Datalists are read and checked before any image is, and each flaw is one line."""

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from scripts.core.bags import bag_id_of, bags_to_read, balanced_weights, load_bags, number_of_classes
from scripts.core.errors import InputError


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two folders of two files each."""
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def loaded(folder: Path, *bags: Any, **given: Any) -> list[dict[str, Any]]:
    (folder / "datalist.json").write_text(json.dumps({"training": list(bags)}))
    return load_bags(str(folder / "datalist.json"), "training", str(folder), **given)


def test_paths_are_relative_to_the_dataset_and_names_are_derived(cohort: Path) -> None:
    scan = {"image": "a", "label": 1, "annotation": "a.geojson"}
    slides: dict[str, list[Any]] = {"image": ["b/1", "a/2"], "annotation": [None, "b.xml"], "instance_label": ["a.npy"]}
    one, several = loaded(cohort, scan, {**slides, "label": 0, "bag_id": "patient"})
    assert one == {"image": str(cohort / "a"), "label": 1, "annotation": str(cohort / "a.geojson"), "bag_id": "a"}
    for key, paths in slides.items():  # of several slides some may have no annotation
        assert several[key] == [path and str(cohort / path) for path in paths]


def test_a_file_of_features_of_any_kind_gives_the_name_of_its_slide(tmp_path: Path) -> None:
    for suffix in (".h5", ".hdf5", ".zarr", ".npz", ".safetensors", ".npy", ".pt"):
        assert bag_id_of(f"features/a.1{suffix}") == "a.1"
    for name in ("a", "b"):  # as Owkin's
        (tmp_path / name).mkdir()
        (tmp_path / name / "features.npy").touch()
    bags = loaded(tmp_path, *({"image": f"{name}/features.npy", "label": 1} for name in "ab"))
    assert [bag["bag_id"] for bag in bags] == ["a", "b"]


def test_a_name_stays_a_name(cohort: Path) -> None:
    """It may have 200 bytes; and of one that is also a folder MONAI's own loader would make a path."""
    names = ["ä" * 100, "b", "..."]
    bags = loaded(cohort, *({"image": "a", "label": 1, "bag_id": name} for name in names))
    assert [bag["bag_id"] for bag in bags] == names


@pytest.mark.parametrize(
    ("bag", "message"),
    [
        ({"image": "a", "label": None}, r'"training"\[0\] \(a\) has no "label": give 0 or 1'),
        ({"image": "a", "label": "yes"}, r"has the label 'yes', which is not one of the classes: give 0 or 1, or the"),
        *(
            ({"image": "a", "bag_id": name}, rf"the bag_id {name!r}, which .* at most 200 bytes$")
            for name in ("../../evil", "..", "", "ä" * 101, 7)
        ),
        *(({"image": image}, r'"training"\[0\] names no "image"') for image in (None, [], ["a", 1])),
        ({"image": "gone"}, r"\(gone\): .*gone does not exist: check --dataset_dir"),
        ({"image": ["a/1", "a/3", "c/1"], "bag_id": "x"}, r"\(x\): .*a/3 does not exist \(2 of its 3 files\)"),
        ({"image": ["a", "b"], "label": 1}, r'\[0\] is a list of files without a name: give it a "bag_id"$'),
        *((given, r'"training"\[0\] is .*, not an object: give \{"image": ') for given in ("a", None, ["a"])),
    ],
)
def test_each_flaw_of_a_bag_is_reported(cohort: Path, bag: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loaded(cohort, bag)


def test_a_bag_is_named_as_its_file_is_but_for_what_no_terminal_prints() -> None:
    names = {"a\u00a0b": "a\u00a0b", "a%C2%A0b": "a%C2%A0b", "50%\n": "50%25%0A"}
    assert {name: bag_id_of(f"scans/{name}.nii.gz") for name in names} == names


def test_each_folder_is_listed_once(cohort: Path) -> None:
    """Of a million files in one folder not each is asked for."""
    bags = [{"image": ["a/1", "a/2"], "label": 0, "bag_id": f"x{n}"} for n in range(5)]
    with patch("os.listdir", wraps=os.listdir) as listed:
        assert len(loaded(cohort, *bags)) == 5
    listed.assert_called_once_with(str(cohort / "a"))


def test_flaws_of_the_file_are_reported(cohort: Path) -> None:
    (cohort / "text.json").write_text("training: a")
    wrong = {"none": r"cannot read the datalist .*none\.json \(No such file", "text": r"text\.json is not JSON"}
    for name, message in wrong.items():
        with pytest.raises(InputError, match=message):
            load_bags(str(cohort / f"{name}.json"), "training", str(cohort))
    with pytest.raises(InputError, match='has no bags under "training"'):
        loaded(cohort)


def test_inference_finds_bags_unless_a_datalist_names_them(cohort: Path) -> None:
    loaded(cohort, {"image": "a", "label": 1})
    for datalist, bag_id in ((None, "found"), (str(cohort / "datalist.json"), "a")):
        (bag,) = bags_to_read(lambda folder: [{"bag_id": "found"}], str(cohort), datalist, "training")
        assert bag["bag_id"] == bag_id


def test_null_says_not_known_and_labels_of_instances_are_left_as_they_are(cohort: Path) -> None:
    bag = {"image": "a", "label": None, "annotation": None, "instance_label": None}
    assert loaded(cohort, bag, labelled=False) == [{"image": str(cohort / "a"), "bag_id": "a"}]
    for given in ([0, 1, 1], {"1.2.3": 1}):
        assert loaded(cohort, {**bag, "label": 1, "instance_label": given})[0]["instance_label"] == given


def test_two_bags_of_one_name_are_refused(cohort: Path) -> None:
    one, two = ({"image": image, "label": 1, "bag_id": "x"} for image in (["a/1", "a/2"], "b"))
    with pytest.raises(InputError, match=r'a/1 and .*b would both be named x: give each a "bag_id" of its own'):
        loaded(cohort, one, two)
    assert len(loaded(cohort, one, one)) == 2  # one bag, twice


@pytest.mark.parametrize(
    ("label", "names", "number"),
    [
        ("DCIS", ("N", "DCIS"), 1),
        (1, ("N", "DCIS"), 1),
        ("2", ("0", "1", "2"), 2),
        (1, ("1", "2", "3"), 0),  # a name goes before a number
        (1.0, None, 1),
        *((label, ("N", "DCIS"), None) for label in ("LCIS", 2, -1, 0.5)),
    ],
)
def test_a_label_is_the_name_of_a_class_or_its_number(
    cohort: Path, label: object, names: tuple[str, ...] | None, number: int | None
) -> None:
    bag = {"image": "a", "label": label}
    if number is None:
        with pytest.raises(InputError, match="is not one of the classes: give one of N, DCIS"):
            loaded(cohort, bag, class_names=names)
    else:
        assert loaded(cohort, bag, class_names=names)[0]["label"] == number


def test_balanced_classes_weigh_alike_and_a_bag_weighs_one_on_average() -> None:
    bags = [{"label": label} for label in [0] * 6 + [1] * 3 + [2]]
    weights = balanced_weights(bags, ("a", "b", "c"))
    assert [6 * weights[0], 3 * weights[1], 1 * weights[2]] == pytest.approx([10 / 3] * 3)
    with pytest.raises(InputError, match="no bag to train on has the label d"):
        balanced_weights(bags, ("a", "b", "c", "d"))


def test_several_classes_need_names() -> None:
    assert number_of_classes(("a", "b", "c")) == 3
    for names in (None, ("a",)):
        with pytest.raises(InputError, match=r"name configs/bracs.json .* or give yours with --class_names"):
            number_of_classes(names)
