# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the scans below a folder."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from scripts.core.bags import paths_of
from scripts.core.errors import InputError, printable_name
from scripts.ct.dicom.files import ImageFile, is_zip, walk
from scripts.ct.dicom.headers import Header, read_headers
from scripts.ct.dicom.series import by_study
from scripts.ct.reader import VOLUME_SUFFIXES, is_volume

Image = str | list[str]  # a path, or the files of a study

MAX_NAME_BYTES = 100  # an output folder is named after a scan, and files in it are too


def find_scans(directory: str | os.PathLike) -> list[dict[str, Any]]:
    """Return a bag for each scan at any depth below a folder: each study of DICOM images, each zip and each volume.

    It has a `bag_id`, and as `image` the path, or the list of a study's files where its folder holds others too.
    """
    root = Path(directory)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the folder that holds the scans")
    headers, rejected = read_headers(root, progress=True)
    scans: list[tuple[str, Image]] = [(_scan_name(root, path), str(path)) for path in walk(root) if is_volume(path)]
    scans += _dicom_scans(root, headers, [file for file, _ in rejected])
    if not scans:
        raise InputError(f"{root} holds no scan (DICOM, NIfTI, NRRD, MetaImage): give the folder that holds the scans")
    named: dict[str, Image] = {}
    for name, image in sorted(scans, key=lambda scan: paths_of(scan[1])[0]):
        bag_id = _shortened(name)
        if bag_id in named:
            one, other = (paths_of(each)[0] for each in (named[bag_id], image))
            raise InputError(f"{one} and {other} would both be named {bag_id}: rename one")
        named[bag_id] = image
    return [{"image": image, "bag_id": bag_id} for bag_id, image in named.items()]


def _dicom_scans(root: Path, headers: Iterable[Header], rejected: Iterable[ImageFile]) -> Iterator[tuple[str, Image]]:
    by_holder: dict[Path, list[Header]] = defaultdict(list)
    for header in headers:
        by_holder[_holder(header.file)].append(header)
    studies: dict[str, list[Header]] = defaultdict(list)
    for holder, in_holder in by_holder.items():
        for study, of_study in by_study(in_holder).items():
            is_named = study and of_study[0].file.member is None
            # A zip is a scan, as without UIDs a folder is.
            studies[study if is_named else str(holder)] += of_study
    scans = [(study, copy) for study, of_study in studies.items() for copy in _copies(of_study)]
    held: Counter[Path] = Counter()  # scans in a folder, at whatever depth
    for _, copy in scans:
        held.update({folder for header in copy for folder in _up_to(root, _holder(header.file))})
    alone = set()
    for study, copy in scans:
        folder = _folder_of(copy)
        if held[folder] == 1:
            alone.add(folder)
            yield _scan_name(root, folder), str(folder)
        else:
            paths = list(dict.fromkeys(str(header.file.path) for header in copy))
            yield f"{_scan_name(root, folder)}_{_short_hash(study)}", paths if len(paths) > 1 else paths[0]
    for holder in dict.fromkeys(file.path if is_zip(file.path) else _holder(file) for file in rejected):
        if holder not in held and alone.isdisjoint(_up_to(root, holder)):
            yield _scan_name(root, holder), str(holder)  # nothing in it can be read: its reader says why


def _copies(study: list[Header]) -> Iterator[list[Header]]:
    """Yield a study, or, where it lies in one folder and again in another, each copy."""
    folder = _folder_of(study)
    parts: dict[tuple[str, ...], list[Header]] = defaultdict(list)  # by the next folder on the way to the slice
    for header in study:
        parts[_holder(header.file).relative_to(folder).parts[:1]].append(header)
    slices = [{(header.sop, header.frame) for header in part if header.sop} for part in parts.values()]
    # Half of the larger one, as key images in a folder of their own are no second scan.
    if any(2 * len(one & other) > max(len(one), len(other)) for one, other in combinations(slices, 2)):
        for part in parts.values():
            yield from _copies(part)
    else:
        yield study


def _folder_of(headers: Iterable[Header]) -> Path:
    return Path(os.path.commonpath({_holder(header.file) for header in headers}))


def _holder(file: ImageFile) -> Path:
    """Return the folder or the zip that holds an image."""
    return file.path.parent if file.member is None else file.path


def _up_to(root: Path, path: Path) -> list[Path]:
    return [folder for folder in (path, *path.parents) if folder.is_relative_to(root)]


def _scan_name(root: Path, path: Path) -> str:
    if path == root:
        return printable_name(root.resolve().name)
    name = path.relative_to(root).as_posix().replace("/", "_")
    suffix = next((each for each in (*VOLUME_SUFFIXES, ".zip") if name.lower().endswith(each) and path.is_file()), "")
    return printable_name(name[: len(name) - len(suffix)])


def _shortened(name: str) -> str:
    encoded = os.fsencode(name)
    if len(encoded) <= MAX_NAME_BYTES:
        return name
    return f"{encoded[: MAX_NAME_BYTES - 9].decode(errors='ignore')}_{_short_hash(name)}"


def _short_hash(study: str) -> str:
    """Return what tells studies of one folder apart, and nothing else of them."""
    return hashlib.blake2b(study.encode(errors="replace"), digest_size=4).hexdigest()
