# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The cohort of RSNA 2019: slices of all scans in one folder, and six rows of a csv for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from scripts.ct.datalist.images import Images
from scripts.ct.dicom.headers import Header
from scripts.ct.dicom.series import by_study
from scripts.datalist.split import Cohort, Scan
from scripts.datalist.tables import SliceLabels, read_slice_labels


def collect(folder: Path, labels: Path, index: Path, subtype: str) -> tuple[Cohort, Images]:
    """A scan for each study; it is positive where one of its slices is."""
    table = read_slice_labels(labels, subtype)
    slices = folder / labels.stem
    images = Images(folder, slices if slices.is_dir() else folder, index)
    cohort = Cohort()
    studies = by_study(_labelled(images, table, cohort))
    for bag_id, planes in zip(_names(studies), studies.values(), strict=True):
        choice = images.choose(cohort, bag_id, planes)
        if choice is None:
            continue
        instance_label = {plane.sop: table.labels[plane.sop] for plane in choice.headers}
        label = max(instance_label.values())
        if label < max(table.labels[plane.sop] for plane in planes):
            cohort.warnings.add("positive slices are not among those that are read", [bag_id])
        image, patient = images.named(choice.headers), images.patient_of(cohort, bag_id, choice.headers)
        cohort.scans.append(
            Scan(bag_id, label, image, len(instance_label), patient, frozenset(instance_label), instance_label)
        )
    return cohort, images


def _labelled(images: Images, table: SliceLabels, cohort: Cohort) -> list[Header]:
    """Slices that are whole and have a label."""
    reject = cohort.rejected.add
    reject("row that stands there again", table.repeated_rows)
    known = {Path(rejected.file.name).stem for rejected in images.rejected}
    usable = []
    for header in images.headers:
        known.add(header.sop)
        if header.sop in table.contradictory:
            reject("slice whose rows disagree", [images.relative(header.file.path)])
        elif header.sop not in table.labels:
            reject("slice without a row", [images.relative(header.file.path)])
        else:
            usable.append(header)
    reject("row without its slice", (table.labels.keys() | table.contradictory) - known)
    return usable


def _names(studies: Iterable[str]) -> list[str]:
    """One for each study, without telling its UID."""
    digests = [hashlib.sha256(study.encode()).hexdigest() for study in studies]
    digits = 8
    while len({digest[:digits] for digest in digests}) < len(digests):
        digits += 4
    return [f"scan_{digest[:digits]}" for digest in digests]
