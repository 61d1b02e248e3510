# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Collect the cohort of RSNA 2019: slices of all scans in one folder, and six rows of a csv for each."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from scripts.core.errors import InputError
from scripts.ct.datalist.images import Cohort, Images
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
    agreed = ((sop, bits) for sop, bits in rows.items() if bits & wanted and sop not in contradictory)
    return SliceLabels({sop: int(bool(bits & wanted << 6)) for sop, bits in agreed}, contradictory, repeated)


def collect_rsna(folder: Path, labels: Path, index: Path, subtype: str) -> tuple[Cohort, Images]:
    """Make a scan of each study; it is positive where one of its slices is."""
    table = read_slice_labels(labels, subtype)
    slices = folder / labels.stem
    images = Images(folder, slices if slices.is_dir() else folder, index)
    cohort = Cohort()
    studies = by_study(_labelled(images, table, cohort))
    for bag_id, planes in zip(_scan_names(studies), studies.values(), strict=True):
        scan = images.scan(cohort, bag_id, max(table.labels[plane.sop] for plane in planes), planes)
        if scan is None:
            continue
        instance_label = {sop: table.labels[sop] for sop in scan.sops}
        label = max(instance_label.values())
        if label < scan.label:
            cohort.warnings.add("positive slices are not among those that are read", [bag_id])
        cohort.scans.append(replace(scan, label=label, instance_label=instance_label))
    return cohort, images


def _labelled(images: Images, table: SliceLabels, cohort: Cohort) -> list[Header]:
    """Return the slices that are whole and have a label."""
    whole, listed = {header.sop for header in images.headers}, table.labels.keys() | table.contradictory
    for kind, sops in (("slice whose rows disagree", table.contradictory), ("slice without a row", whole - listed)):
        places = [images.relative(header.file.path) for header in images.headers if header.sop in sops]
        cohort.rejected.add(kind, places)
    damaged = {Path(file.name).stem for file, _ in images.rejected}
    cohort.rejected.add("row that stands there again", table.repeated_rows)
    cohort.rejected.add("row without its slice", listed - whole - damaged)
    return [header for header in images.headers if header.sop in table.labels]


def _scan_names(studies: Iterable[str]) -> list[str]:
    """Return a name for each study, which does not reveal its UID."""
    digests = [hashlib.sha256(study.encode()).hexdigest() for study in studies]
    digits = next(count for count in range(8, 65, 4) if len({digest[:count] for digest in digests}) == len(digests))
    return [f"scan_{digest[:digits]}" for digest in digests]
