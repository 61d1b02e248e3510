# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Collect any folder of scans, with a csv that names each and its label."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.core.bags import paths_of
from scripts.core.errors import InputError
from scripts.ct.datalist.images import Cohort, Images, Scan, by_place
from scripts.ct.reader import is_volume, volume_shape
from scripts.ct.scans import find_scans
from scripts.datalist.tables import SECTIONS, read_rows, require_all_or_none, require_named_once, zero_or_one

_SHOWN = 3  # unknown scans that an error names
_SUFFIX = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|zip|dcm)$", re.IGNORECASE)


class ScanLabel(NamedTuple):
    """One row of a csv with a scan's label."""

    line: int
    scan: str
    label: int
    patient: str  # "" where the csv does not say
    section: str  # likewise


def read_scan_labels(path: Path) -> list[ScanLabel]:
    """Read a csv with the columns `scan` and `label`, and if wanted `patient` and `section`."""
    rows = []
    for line, (scan, label, patient, section) in read_rows(path, ("scan", "label"), ("patient", "section")):
        if section not in ("", *SECTIONS):
            raise InputError(f"{path}, line {line}: the section {section!r} is none: give {', '.join(SECTIONS)}")
        rows.append(ScanLabel(line, scan, zero_or_one(label, path, line), patient, section))
    require_all_or_none([(row.line, row.patient) for row in rows], path, "patient", "scan")
    require_all_or_none([(row.line, row.section) for row in rows], path, "section", "scan")
    require_named_once([(row.line, row.scan) for row in rows], path, "scan")
    return rows


def collect_folder(folder: Path, labels: Path, index: Path) -> tuple[Cohort, Images]:
    """Make a scan of each row: a folder, a zip or a file of DICOM, or a volume in NIfTI, NRRD or MetaImage."""
    rows = read_scan_labels(labels)
    names = _bag_ids(folder, rows, labels)
    places = _images_of_rows(folder, rows, labels)
    elsewhere = [place for found in places for place in found if not place.is_relative_to(folder)]
    images = Images(folder, [folder, *elsewhere], index)
    planes = by_place(images.headers, (place for found in places for place in found))
    cohort = Cohort()
    for row, bag_id, found in zip(rows, names, places, strict=True):
        if len(found) == 1 and is_volume(found[0]):
            scan = _volume_scan(cohort, images, row, bag_id, found[0])
        else:
            own = [header for place in found for header in planes[place]]
            scan = images.scan(cohort, bag_id, row.label, own, row.patient, row.section)
        cohort.scans += [scan] if scan else []
    labelled = {header.file for headers in planes.values() for header in headers}
    rest = (header.file for header in images.headers if header.file not in labelled)
    cohort.rejected.add("image in no scan that has a row", {file.relative_to(images.folder) for file in rest})
    return cohort, images


def _images_of_rows(folder: Path, rows: Sequence[ScanLabel], labels: Path) -> list[list[Path]]:
    """Return the folder or files of each row's scan: a path in the folder, or a name that inference gives."""
    places = [[_place(row.scan, folder)] for row in rows]
    unknown = [index for index, (place,) in enumerate(places) if not place.exists()]
    if unknown:
        named = {scan["bag_id"]: scan["image"] for scan in find_scans(folder)}
        for index in unknown:
            places[index] = list(map(Path, paths_of(named.get(rows[index].scan, ()))))
        unknown = [index for index in unknown if not places[index]]
    if unknown:
        listed = ", ".join(f"{rows[index].scan!r} in line {rows[index].line}" for index in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        text = f"{labels} names {len(unknown)} of {len(rows)} scans that are not in {folder} ({listed}{more})"
        raise InputError(f"{text}: give each scan's path below that folder")
    return places


def _bag_ids(folder: Path, rows: Sequence[ScanLabel], labels: Path) -> list[str]:
    lines: dict[str, int] = {}
    for row in rows:
        bag_id = _bag_id(row.scan, folder)
        if (line := lines.setdefault(bag_id, row.line)) != row.line:
            raise InputError(f"{labels}, lines {line} and {row.line} would both be named {bag_id}: rename one")
    return list(lines)


def _bag_id(scan: str, folder: Path) -> str:
    path = os.path.relpath(folder / scan, folder)
    if path == ".":
        return folder.resolve().name
    return _SUFFIX.sub("", path.replace(f"..{os.sep}", "")).replace(os.sep, "_")


def _place(scan: str, folder: Path) -> Path:
    path = os.path.relpath(folder / scan, folder)
    return Path(os.path.abspath(folder / scan)) if path.startswith("..") else folder / path


def _volume_scan(cohort: Cohort, images: Images, row: ScanLabel, bag_id: str, path: Path) -> Scan | None:
    try:
        shape = volume_shape(path)
    except InputError:
        shape = ()
    if len(shape) != 3:
        cohort.rejected.add("volume that has not three axes" if shape else "volume that cannot be read", [bag_id])
        return None
    if not row.patient:
        cohort.warnings.add("no PatientID, so taken for a patient of its own", [bag_id])
    image, patient = images.relative(path), row.patient or bag_id
    return Scan(bag_id, row.label, image, shape[2], patient, section=row.section, patient_in_headers=False)
