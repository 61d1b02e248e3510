# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Bags as a datalist names them: its sections, read and checked before any image is."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError

PATHS = ("image", "annotation", "instance_label")
LONGEST_BAG_ID = 200  # bytes: a file may add an ending to it
SUFFIXES = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|zip|h5|npy|pt)$")

Image = str | list[str]


def load_bags(
    datalist: str, section: str, dataset_dir: str, labelled: bool = True, class_names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Return the bags of one section of a MONAI datalist, their paths joined to `dataset_dir`.

    `image` is a path; or a list: the DICOM files of one scan where they share a folder with other scans, or the feature
    files of one patient's slides.

    Args:
        datalist: JSON file {"training": [{"image", "label", ...}], "validation": [...], "test": [...]}.
        section: which of its lists.
        dataset_dir: what the paths in it are relative to.
        labelled: every bag must have a label.
        class_names: a label is one of them, or its number; without them it is 0 or 1.
    """
    try:
        content = json.loads(Path(datalist).read_text())
    except OSError as e:
        raise InputError(
            f"cannot read the datalist {datalist} ({e.strerror}): give one with --datalist FILE, "
            'or put "datalist.json" into the dataset folder'
        ) from e
    except ValueError as e:
        raise InputError(f"the datalist {datalist} is not JSON ({e}): correct it") from e
    bags = content.get(section) if isinstance(content, dict) else None
    if not isinstance(bags, list) or not bags:
        raise InputError(f'the datalist {datalist} has no bags under "{section}": add a list of that name')
    exists = _existence()
    images: dict[str, Image] = {}
    checked = []
    for number, given in enumerate(bags):
        bag = _checked_bag(given, f'{datalist}, "{section}"[{number}]', dataset_dir, exists)
        _number_label(bag, f'{datalist}, "{section}"[{number}] ({bag["bag_id"]})', labelled, class_names)
        other = images.setdefault(bag["bag_id"], bag["image"])
        if other != bag["image"]:
            raise InputError(
                f"{_shown(other)} and {_shown(bag['image'])} would both be named {bag['bag_id']}: "
                'give each a "bag_id" of its own'
            )
        checked.append(bag)
    return checked


def bags_to_read(
    find: Callable[[str], list[dict[str, Any]]],
    dataset_dir: str,
    datalist: str | None,
    section: str,
    class_names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return what inference reads: a section of the datalist, or without one whatever `find` finds in the folder.

    Args:
        find: folder → bags.
        dataset_dir: the folder, and what the paths of the datalist are relative to.
        datalist: JSON file, as `load_bags` reads it.
        section: which of its lists.
        class_names: of the labels in it.
    """
    if datalist is None:
        return find(dataset_dir)
    return load_bags(datalist, section, dataset_dir, labelled=False, class_names=class_names)


def balanced_weights(bags: Sequence[Mapping[str, Any]], class_names: Sequence[str] | None = None) -> list[float]:
    """Return a weight for each class, so that all classes together weigh alike and a bag weighs 1 on average.

    Args:
        bags: those that are trained on.
        class_names: of all classes; without them 0 and 1.
    """
    counts = Counter(int(bag["label"]) for bag in bags)
    names = class_names or ("0", "1")
    absent = [name for number, name in enumerate(names) if not counts[number]]
    if absent:
        raise InputError(f"no bag to train on has the label {absent[0]}: class weights cannot balance it, add some")
    return [len(bags) / (len(names) * counts[number]) for number in range(len(names))]


def number_of_classes(class_names: Sequence[str] | None) -> int:
    """Return the logits of a network that tells several classes apart."""
    if class_names is None or len(class_names) < 2:
        raise InputError(
            "class_names does not name two or more classes: name configs/bracs.json or configs/panda.json, "
            "or give yours with --class_names \"['A','B','C']\""
        )
    return len(class_names)


def _checked_bag(given: object, where: str, dataset_dir: str, exists: Callable[[str], bool]) -> dict[str, Any]:
    """The entry with joined paths and a bag_id that can name a folder of results; null in it means "not known"."""
    if not isinstance(given, dict):
        raise InputError(f'{where} is {given!r}, not an object: give {{"image": ..., "label": ...}}')
    bag = {key: value for key, value in given.items() if value is not None}
    if not _is_path_or_paths(bag.get("image")):
        raise InputError(
            f'{where} names no "image": give the path of a scan or of a feature file, or the list of a scan\'s files'
        )
    for key in PATHS:
        value = bag.get(key)
        # of several slides some may have no annotation
        if _is_path_or_paths([path for path in value if path is not None] if isinstance(value, list) else value):
            bag[key] = _with_folder(dataset_dir, bag[key])
    image: Image = bag["image"]
    if isinstance(image, str):
        bag.setdefault("bag_id", SUFFIXES.sub("", Path(image).name))
    elif "bag_id" not in bag:
        raise InputError(f'{where} is a list of files without a name: give it a "bag_id"')
    where = f"{where} ({bag['bag_id']})"
    _require_files(image, where, exists)
    if not _can_name_a_folder(bag["bag_id"]):
        raise InputError(
            f"{where} has the bag_id {bag['bag_id']!r}, which names no file: "
            f"leave out slashes, and give at most {LONGEST_BAG_ID} bytes"
        )
    return bag


def _number_label(bag: dict[str, Any], where: str, labelled: bool, class_names: Sequence[str] | None) -> None:
    """Replace the name of a class by its number."""
    names = list(class_names or ("0", "1"))
    wanted = "0 or 1" if class_names is None else f"one of {', '.join(class_names)}"
    if "label" not in bag:
        if labelled:
            raise InputError(f'{where} has no "label": give {wanted}')
        return
    label = bag["label"]
    if str(label) in names:
        bag["label"] = names.index(str(label))
    elif isinstance(label, (int, float)) and label in range(len(names)):
        bag["label"] = int(label)
    else:
        if class_names is None and isinstance(label, str) and not label.isdigit():
            wanted += ", or the names of all classes in their order with --class_names"
        raise InputError(f"{where} has the label {label!r}, which is not one of the classes: give {wanted}")


def _is_path_or_paths(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and len(value) > 0 and all(isinstance(path, str) for path in value)
    )


def _with_folder(dataset_dir: str, given: str | list[str | None]) -> str | list[str | None]:
    if isinstance(given, str):
        return str(Path(dataset_dir) / given)
    # os.path.join, as a large cohort has a million of them
    return [None if path is None else os.path.join(dataset_dir, path) for path in given]


def _require_files(image: Image, where: str, exists: Callable[[str], bool]) -> None:
    if isinstance(image, str):
        if not Path(image).exists():
            raise InputError(f"{where}: {image} does not exist: check --dataset_dir, or make the features first")
        return
    missing = [path for path in image if not exists(path)]
    if missing:
        raise InputError(
            f"{where}: {len(missing)} of its {len(image)} files do not exist (first {missing[0]}): "
            "check --dataset_dir, or make the datalist again"
        )


def _existence() -> Callable[[str], bool]:
    """Whether a file exists, each folder listed once: asking for a million files one by one takes minutes."""

    @cache
    def names(folder: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(folder or "."))
        except OSError:
            return frozenset()

    def exists(path: str) -> bool:
        folder, name = os.path.split(path)
        return name in names(folder)

    return exists


def _shown(image: Image) -> str:
    if isinstance(image, str):
        return image
    return image[0] if len(image) == 1 else f"{image[0]} with {len(image) - 1} more"


def _can_name_a_folder(bag_id: object) -> bool:
    """The results of a bag go into a folder of this name, which must lie in the output folder."""
    return (
        isinstance(bag_id, str)
        and bag_id not in ("", ".", "..")
        and not set(bag_id) & set("/\\\0")
        and len(bag_id.encode(errors="replace")) <= LONGEST_BAG_ID
    )
