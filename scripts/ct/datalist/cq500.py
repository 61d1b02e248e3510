# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The cohort of CQ500: a folder or zip per case, several series in it, and three readers' answers for each."""

from __future__ import annotations

import os
import re
from pathlib import Path

from scripts.core.errors import InputError
from scripts.ct.datalist.images import Images, by_place
from scripts.datalist.split import Cohort, Scan
from scripts.datalist.tables import ScanLabel, read_majority_labels

_CASE = re.compile(r"CQ500-?CT-?(\d+)(?: CQ500CT\d+)?(?:\.zip)?", re.IGNORECASE)  # a folder or zip as downloaded
_NAME = re.compile(r"CQ500-?CT-?(\d+)", re.IGNORECASE)  # a row


def collect(folder: Path, labels: Path, index: Path) -> tuple[Cohort, Images]:
    """A scan for each case; it is positive where two of three readers say so."""
    rows = _rows(labels)
    places = _places(folder)
    if not places:
        raise InputError(f"{folder} holds no folder named like CQ500CT0 CQ500CT0: give the one that holds them")
    images = Images(folder, folder, index)
    planes = by_place(images.headers, places.values())
    cohort = Cohort()
    for number, row in rows.items():
        if number not in places:
            cohort.rejected.add("row without its folder", [row.scan])
            continue
        bag_id = f"CQ500CT{number}"
        choice = images.choose(cohort, bag_id, planes[places.pop(number)])
        if choice is not None:
            sops = frozenset(plane.sop for plane in choice.headers if plane.sop)
            image = images.named(choice.headers)
            cohort.scans.append(
                Scan(bag_id, row.label, image, len(choice.headers), f"case {number}", sops, patient_in_headers=False)
            )
    cohort.rejected.add("folder without a row", [images.relative(place) for place in places.values()])
    return cohort, images


def _rows(labels: Path) -> dict[int, ScanLabel]:
    """By the number of the case."""
    rows = {}
    for row in read_majority_labels(labels):
        name = _NAME.fullmatch(row.scan)
        if name is None:
            raise InputError(f"{labels}, line {row.line}: {row.scan!r} is not like CQ500-CT-0: give CQ500's reads.csv")
        rows[int(name[1])] = row
    return rows


def _places(folder: Path) -> dict[int, Path]:
    """Where each case lies, by its number; what was unpacked goes before the zip it came from."""
    folders: dict[int, Path] = {}
    zips: dict[int, Path] = {}
    for parent, subfolders, names in os.walk(folder):
        for found, these in ((folders, subfolders), (zips, names)):
            for name in sorted(these):
                case = _CASE.fullmatch(name)
                if case is None:
                    continue
                place = Path(parent, name)
                other = found.setdefault(int(case[1]), place)
                if other != place:
                    raise InputError(f"{other} and {place} are of one case: take one away")
        subfolders[:] = [name for name in subfolders if _CASE.fullmatch(name) is None]
    return {**zips, **folders}
