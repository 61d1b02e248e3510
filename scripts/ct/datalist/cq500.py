# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Collect the cohort of CQ500: a folder or zip per case, several series in it, and three readers' answers for each."""

import os
import re
from pathlib import Path

from scripts.core.errors import InputError
from scripts.ct.datalist.images import Cohort, Images, by_place
from scripts.datalist.tables import read_rows, require_named_once, zero_or_one

_CASE = re.compile(r"CQ500-?CT-?(\d+)(?: CQ500CT\d+)?(?:\.zip)?", re.IGNORECASE)  # a folder or zip as downloaded
_READERS = ("R1:ICH", "R2:ICH", "R3:ICH")
_NAME = re.compile(r"CQ500-?CT-?(\d+)", re.IGNORECASE)  # a row


def collect_cq500(folder: Path, labels: Path, index: Path) -> tuple[Cohort, Images]:
    """Make a scan of each case; it is positive where two of three readers say so."""
    rows = read_majority_labels(labels)
    places = _case_folders(folder)
    if not places:
        raise InputError(f"{folder} holds no folder named like CQ500CT0 CQ500CT0: give the one that holds them")
    images = Images(folder, folder, index)
    planes = by_place(images.headers, places.values())
    cohort = Cohort()
    for number, (name, label) in rows.items():
        if number not in places:
            cohort.rejected.add("row without its folder", [name])
            continue
        of_case = planes[places.pop(number)]
        if scan := images.scan(cohort, f"CQ500CT{number}", label, of_case, patient=f"case {number}"):
            cohort.scans.append(scan)
    cohort.rejected.add("folder without a row", [images.relative(place) for place in places.values()])
    return cohort, images


def read_majority_labels(path: Path) -> dict[int, tuple[str, int]]:
    """Read reads.csv, where three readers each answered; return number of the case -> its name, and their majority."""
    rows = list(read_rows(path, ("name", *_READERS)))
    require_named_once([(line, name) for line, (name, *_) in rows], path, "scan")
    labels = {}
    for line, (name, *votes) in rows:
        case = _NAME.fullmatch(name)
        if case is None:
            raise InputError(f"{path}, line {line}: {name!r} is not like CQ500-CT-0: give CQ500's reads.csv")
        positive = sum(zero_or_one(vote, path, line) for vote in votes)
        labels[int(case[1])] = name, int(positive > len(votes) / 2)
    return labels


def _case_folders(folder: Path) -> dict[int, Path]:
    """Return number of the case -> its folder or zip; what was unpacked goes before the zip it came from."""
    folders: dict[int, Path] = {}
    zips: dict[int, Path] = {}
    for parent, subfolders, names in os.walk(folder):
        for found, these in ((folders, subfolders), (zips, names)):
            for name in sorted(these):
                case, place = _CASE.fullmatch(name), Path(parent, name)
                if case and (other := found.setdefault(int(case[1]), place)) != place:
                    raise InputError(f"{other} and {place} are of one case: take one away")
        subfolders[:] = [name for name in subfolders if _CASE.fullmatch(name) is None]
    return {**zips, **folders}
