# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Collect the cohort of RSNA 2019: slices of all scans in one folder, and six rows of a csv for each."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from scripts.core.errors import InputError
from scripts.ct.datalist.images import Cohort, Images, Scan
from scripts.ct.dicom.headers import Header
from scripts.ct.dicom.series import by_study
from scripts.datalist.tables import read_rows, zero_or_one

RSNA_SUBTYPES = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


class SliceLabels(NamedTuple):
    """What the csv of RSNA 2019 says of its slices."""

    labels: dict[str, int]  # SOPInstanceUID -> 0 or 1
    contradictory: set[str]  # slices with two rows that disagree; they are in no `labels`
    repeated_rows: list[str]  # that stand there again


def read_slice_labels(path: Path, subtype: str) -> SliceLabels:
    """Read stage_2_train.csv, which has six rows `ID_<hex>_<subtype>` per slice."""
    if subtype not in RSNA_SUBTYPES:
        raise InputError(f"--subtype {subtype!r} is not known: give {', '.join(RSNA_SUBTYPES)}")
    # A bit for each row a slice has, and six bits higher one for its value: 4.5 million rows must fit into memory.
    known_bit = {name: 1 << bit for bit, name in enumerate(RSNA_SUBTYPES)}
    rows: dict[str, int] = {}
    contradictory: set[str] = set()
    repeated: list[str] = []
    for line, (name, value) in read_rows(path, ("ID", "Label")):
        sop, _, kind = name.rpartition("_")
        if not sop or kind not in known_bit:
            raise InputError(f"{path}, line {line}: {name!r} is not ID_<hex>_<subtype>: give RSNA's stage_2_train.csv")
        known = known_bit[kind]
        entry = known | known << 6 if zero_or_one(value, path, line) else known
        before = rows.get(sop, 0)
        if before & known:
            repeated.append(name)
            if before & (known << 6) != entry & (known << 6):
                contradictory.add(sop)
        rows[sop] = before | entry
    wanted = known_bit[subtype]
    labels = {sop: int(bool(bits & wanted << 6)) for sop, bits in rows.items() if bits & wanted}
    for sop in contradictory:
        labels.pop(sop, None)
    return SliceLabels(labels, contradictory, repeated)


def collect_rsna(folder: Path, labels: Path, index: Path, subtype: str) -> tuple[Cohort, Images]:
    """Make a scan of each study; it is positive where one of its slices is."""
    table = read_slice_labels(labels, subtype)
    slices = folder / labels.stem
    images = Images(folder, slices if slices.is_dir() else folder, index)
    cohort = Cohort()
    studies = by_study(_labelled(images, table, cohort))
    for bag_id, planes in zip(_scan_names(studies), studies.values(), strict=True):
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
    """Return the slices that are whole and have a label."""
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


def _scan_names(studies: Iterable[str]) -> list[str]:
    """Return a name for each study, which does not reveal its UID."""
    digests = [hashlib.sha256(study.encode()).hexdigest() for study in studies]
    digits = 8
    while len({digest[:digits] for digest in digests}) < len(digests):
        digits += 4
    return [f"scan_{digest[:digits]}" for digest in digests]
