# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The scans below a folder, as a datalist."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError
from scripts.ct.dicom.files import ImageFile, is_zip, walk
from scripts.ct.dicom.headers import Header, read_headers
from scripts.ct.dicom.series import by_study
from scripts.ct.reader import VOLUME_SUFFIXES, is_volume

MAX_NAME_BYTES = 100  # an output folder is named after a scan, and files in it are too

Image = str | list[str]


def find_scans(directory: str | os.PathLike) -> list[dict[str, Any]]:
    """Each study of DICOM images is a scan, and so is each zip and each volume.

    `image` is the folder of the study, or the list of its files where that folder holds others too.
    """
    root = Path(directory)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the folder that holds the scans")
    headers, rejected = read_headers(root, progress=True)
    scans: list[tuple[str, Image]] = [(_name(root, path), str(path)) for path in walk(root) if is_volume(path)]
    scans += _dicom_scans(root, headers, [file for file, _ in rejected])
    if not scans:
        raise InputError(f"{root} holds no scan (DICOM, NIfTI, NRRD, MetaImage): give the folder that holds the scans")
    named: dict[str, Image] = {}
    for name, image in sorted(scans, key=lambda scan: _first(scan[1])):
        bag_id = _shortened(name)
        if bag_id in named:
            raise InputError(f"{_first(named[bag_id])} and {_first(image)} would both be named {bag_id}: rename one")
        named[bag_id] = image
    return [{"image": image, "bag_id": bag_id} for bag_id, image in named.items()]


def _dicom_scans(root: Path, headers: Iterable[Header], rejected: Iterable[ImageFile]) -> Iterator[tuple[str, Image]]:
    in_place: dict[Path, list[Header]] = {}
    for header in headers:
        in_place.setdefault(_place(header.file), []).append(header)
    studies: dict[str, list[Header]] = {}
    for place, of_place in in_place.items():
        for study, of_study in by_study(of_place).items():
            is_named = study and of_study[0].file.member is None
            # A zip is a scan, as without UIDs a folder is.
            studies.setdefault(study if is_named else str(place), []).extend(of_study)
    scans = [(study, _folder_of(copy), copy) for study, of_study in studies.items() for copy in _copies(of_study)]
    held: dict[Path, set[int]] = {}  # which scans lie in a folder, at whatever depth
    for number, (_, _, copy) in enumerate(scans):
        for folder in {folder for place in _places(copy) for folder in _up_to(root, place)}:
            held.setdefault(folder, set()).add(number)

    for study, folder, copy in scans:
        if len(held[folder]) == 1:
            yield _name(root, folder), str(folder)
        else:
            paths = list(dict.fromkeys(str(header.file.path) for header in copy))
            yield f"{_name(root, folder)}_{_hashed(study)}", paths if len(paths) > 1 else paths[0]
    alone = {folder for _, folder, _ in scans if len(held[folder]) == 1}
    for place in dict.fromkeys(file.path if is_zip(file.path) else _place(file) for file in rejected):
        if place not in held and alone.isdisjoint(_up_to(root, place)):
            yield _name(root, place), str(place)  # nothing in it can be read: its reader says why


def _copies(study: list[Header]) -> Iterator[list[Header]]:
    """A study that lies in one folder and again in another is a scan in each."""
    folder = _folder_of(study)
    parts: dict[tuple[str, ...], list[Header]] = {}  # by the next folder on the way to the slice
    for header in study:
        parts.setdefault(_place(header.file).relative_to(folder).parts[:1], []).append(header)
    slices = [{(header.sop, header.frame) for header in part if header.sop} for part in parts.values()]
    # Half of the larger one, as key images in a folder of their own are no second scan.
    if any(2 * len(one & other) > max(len(one), len(other)) for one, other in combinations(slices, 2)):
        for part in parts.values():
            yield from _copies(part)
    else:
        yield study


def _folder_of(headers: Iterable[Header]) -> Path:
    return Path(os.path.commonpath(_places(headers)))


def _places(headers: Iterable[Header]) -> set[Path]:
    """The folders and zips that hold them."""
    return {_place(header.file) for header in headers}


def _place(file: ImageFile) -> Path:
    return file.path.parent if file.member is None else file.path


def _up_to(root: Path, place: Path) -> Iterator[Path]:
    yield place
    while place != root:
        place = place.parent
        yield place


def _name(root: Path, path: Path) -> str:
    if path == root:
        return root.resolve().name
    name = path.relative_to(root).as_posix().replace("/", "_")
    suffixes = [suffix for suffix in (*VOLUME_SUFFIXES, ".zip") if name.lower().endswith(suffix) and path.is_file()]
    return name.removesuffix(name[-len(suffixes[0]) :]) if suffixes else name


def _shortened(name: str) -> str:
    encoded = os.fsencode(name)
    if len(encoded) <= MAX_NAME_BYTES:
        return name
    return f"{encoded[: MAX_NAME_BYTES - 9].decode(errors='ignore')}_{_hashed(name)}"


def _hashed(study: str) -> str:
    """Tells studies of one folder apart, and nothing else of them."""
    return hashlib.blake2b(study.encode(errors="replace"), digest_size=4).hexdigest()


def _first(image: Image) -> str:
    return image if isinstance(image, str) else image[0]
