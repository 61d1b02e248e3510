# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Bags as a datalist names them: its sections, read and checked before any image is."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError, printable_name

PATHS = ("image", "annotation", "instance_label")
LONGEST_BAG_ID = 200  # bytes: a file may add an ending to it
SUFFIXES = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|zip|h5|hdf5|zarr|npz|safetensors|npy|pt)$")
NAMED_BY_ITS_FOLDER = "features.npy"  # a file that is called so for every slide, each in a folder of its own

_ONE_FOLDER = re.compile(r"(?!\.{1,2}\Z)[^/\\\0]+")  # the results of a bag go into one, which lies in the output folder


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
    names_in = cache(_names_in)  # each folder is listed once: asking for a million files one by one takes minutes
    images: dict[str, Any] = {}
    checked = []
    for number, given in enumerate(bags):
        where = f'{datalist}, "{section}"[{number}]'
        bag = _checked_bag(given, where, dataset_dir, names_in)
        _number_label(bag, f"{where} ({bag['bag_id']})", labelled, class_names)
        other = images.setdefault(bag["bag_id"], bag["image"])
        if other != bag["image"]:
            both = " and ".join(image if isinstance(image, str) else image[0] for image in (other, bag["image"]))
            raise InputError(f'{both} would both be named {bag["bag_id"]}: give each a "bag_id" of its own')
        checked.append(bag)
    without = [bag["bag_id"] for bag in checked if "patient" not in bag]
    if 0 < len(without) < len(checked):
        raise InputError(f'{datalist}, "{section}" names no "patient" of {without[0]}: give every bag one, or none')
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
        dataset_dir: the folder; this and the others are as `load_bags` takes them.
    """
    if datalist is None:
        return find(dataset_dir)
    return load_bags(datalist, section, dataset_dir, labelled=False, class_names=class_names)


def paths_of(image: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """Return the paths of a bag's image, which names one or several."""
    return [str(path) for path in ([image] if isinstance(image, (str, os.PathLike)) else image)]


def bag_id_of(path: str) -> str:
    """Return the name of a bag by the path of its image."""
    own, folder = Path(path).name, Path(path).absolute().parent.name
    return printable_name(folder if own == NAMED_BY_ITS_FOLDER else SUFFIXES.sub("", own))


def balanced_weights(bags: Sequence[Mapping[str, Any]], class_names: Sequence[str] | None = None) -> list[float]:
    """Return a weight for each class (0 and 1 without names): classes weigh alike, and a bag weighs 1 on average."""
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


def _checked_bag(
    given: object, where: str, dataset_dir: str, names_in: Callable[[str], frozenset[str]]
) -> dict[str, Any]:
    """The entry with joined paths and a bag_id that can name a folder of results; null in it means "not known"."""
    if not isinstance(given, dict):
        raise InputError(f'{where} is {given!r}, not an object: give {{"image": ..., "label": ...}}')
    bag = {key: _with_folder(dataset_dir, key, value) for key, value in given.items() if value is not None}
    if "patient" in bag:
        bag["patient"] = str(bag["patient"])
    image = bag.get("image")
    paths = [image] if isinstance(image, str) else image
    if not (isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)):
        raise InputError(
            f'{where} names no "image": give the path of a scan or of a feature file, or the list of a scan\'s files'
        )
    if isinstance(image, str):
        bag.setdefault("bag_id", bag_id_of(image))
        missing = [] if os.path.exists(image) else paths
    else:
        missing = [path for path in paths if os.path.basename(path) not in names_in(os.path.dirname(path))]
    bag_id = bag.get("bag_id")
    if bag_id is None:
        raise InputError(f'{where} is a list of files without a name: give it a "bag_id"')
    if missing:
        count = f" ({len(missing)} of its {len(paths)} files)" if len(paths) > 1 else ""
        advice = "check --dataset_dir, or make the features or the datalist again"
        raise InputError(f"{where} ({bag_id}): {missing[0]} does not exist{count}: {advice}")
    is_name = isinstance(bag_id, str) and _ONE_FOLDER.fullmatch(bag_id)
    if not is_name or len(bag_id.encode(errors="replace")) > LONGEST_BAG_ID:
        advice = f"leave out slashes, and give at most {LONGEST_BAG_ID} bytes"
        raise InputError(f"{where} has the bag_id {bag_id!r}, which names no file: {advice}")
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


def _with_folder(dataset_dir: str, key: str, given: Any) -> Any:
    """Join what is a path, or a list of them; labels of instances stay, as does null for a slide without annotation."""
    if key in PATHS and isinstance(given, str):
        return str(Path(dataset_dir) / given)
    if key in PATHS and isinstance(given, list):  # os.path.join, as a large cohort has a million of them
        return [os.path.join(dataset_dir, each) if isinstance(each, str) else each for each in given]
    return given


def _names_in(folder: str) -> frozenset[str]:
    with suppress(OSError):
        return frozenset(os.listdir(folder or "."))
    return frozenset()
