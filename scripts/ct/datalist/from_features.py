# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Makes feature files and their datalist of features of slices that another program wrote."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import InputError
from scripts.core.files import writable_folder
from scripts.ct.datalist.folder import ScanLabel, read_scan_labels
from scripts.ct.datalist.images import Cohort, Scan
from scripts.ct.datalist.slice_tables import (
    AS_THEY_STAND,
    Roles,
    SliceTable,
    grouped,
    joined_by_slice,
    read_slice_tables,
)
from scripts.ct.datalist.writing import count_scans
from scripts.ct.features import SliceFeatures, write_slice_features
from scripts.datalist.split import Leakage, Owners, count_sections, section_notes, split
from scripts.datalist.tables import SECTIONS
from scripts.datalist.writing import CheckedDatalist, DatalistRequest, as_text, destination, require_several_patients

SPACING_MM = 5.0  # where positions are not known


@dataclass(frozen=True, kw_only=True)
class FeatureRequest(DatalistRequest):
    """What `features ct` is asked for."""

    content = "features"

    source: Path
    roles: Roles = field(default_factory=Roles)
    prefix: str = "feature"
    join: Path | None = None  # a csv with further columns, by the slice
    encoder: str = ""  # by default the name of the source


@dataclass(frozen=True)
class ScanOfSlices:
    """A scan whose slices are in order."""

    name: str
    label: int | None
    patient: str
    section: str
    slice_labels: list[int] | None
    file: SliceFeatures

    def entry(self) -> Scan:
        """Return it as a datalist names it; it has a label."""
        assert self.label is not None
        count, patient = len(self.file.features), self.patient or self.name
        return Scan(self.name, self.label, f"{self.name}.h5", count, patient, (), self.slice_labels, self.section)


def write_cohort_of_features(request: FeatureRequest) -> str:
    """Write a feature file per scan, and a datalist of those with a label; return a summary for the screen."""
    remarks = Cohort()
    scans = collect_scans(request, remarks)
    widths = {scan.file.features.shape[1]: scan.name for scan in scans}
    if len(widths) > 1:
        (one, of_one), (other, of_other) = list(widths.items())[:2]
        raise InputError(f"{of_one} has {one} features per slice and {of_other} {other}: take those of one network")
    folder = writable_folder(request.folder)
    if request.source in (folder, *(folder / f"{scan.name}.h5" for scan in scans)):
        raise InputError(f"{request.source} would be written over: give another folder for the feature files")
    labelled = [scan.entry() for scan in scans if scan.label is not None]
    checked, output, check_file = None, *destination(request)
    if labelled:
        checked = _checked(request, labelled, remarks)
    for scan in scans:
        write_slice_features(folder / f"{scan.name}.h5", scan.file)
    files = f"{len(scans)} feature files of {next(iter(widths))} features per slice in {folder}"
    if checked is None:
        return f"{files}; no datalist, as no scan has a label"
    return f"{checked.write(request, output, check_file)}\nwritten: {files}, {output.name} and {check_file.name}"


def _checked(request: FeatureRequest, labelled: Sequence[Scan], remarks: Cohort) -> CheckedDatalist:
    require_several_patients(labelled, remarks, request.source, "scan")
    sections = split(labelled, request.shares, request.seed)
    remarks.notes += section_notes(sections, [0, 1], "scans")
    text = as_text(sections)
    leakage = leakage_by_names(json.loads(text))
    counts, about = count_sections(sections, count_scans), {"source": request.source.name}
    return CheckedDatalist(text, leakage, counts, remarks, about, request.source)


def leakage_by_names(datalist: Mapping[str, Sequence[Mapping[str, Any]]]) -> Leakage:
    """Return the leakage of feature files, by the patients that a datalist names."""
    of_patient: Owners = defaultdict(dict)
    of_scan: Owners = defaultdict(dict)
    for section, bags in datalist.items():
        for bag in bags:
            of_patient[str(bag.get("patient", bag["bag_id"]))][section] = bag["bag_id"]
            of_scan[bag["image"]][section] = bag["bag_id"]
    return Leakage("scans", of_patient, of_scan)


def collect_scans(request: FeatureRequest, remarks: Cohort) -> list[ScanOfSlices]:
    """Read the source, put the slices of each scan in order, and find its label."""
    tables = read_slice_tables(request.source, request.roles, request.prefix)
    if request.join is not None:
        for place, table in enumerate(tables):
            tables[place], without, alone = joined_by_slice(table, request.join, request.roles)
            remarks.rejected.add(f"slice that {request.join.name} lacks", without)
            remarks.rejected.add(f"slice of {request.join.name} without features", alone)
    for table in tables:
        for role, column in asdict(request.roles).items():
            if column not in (getattr(Roles(), role), AS_THEY_STAND) and role not in table.columns:
                raise InputError(f"{table.path} has no column {column}: check --{role}")
    labels = {} if request.labels is None else {row.scan: row for row in read_scan_labels(request.labels)}
    found = grouped(tables)
    remarks.rejected.add("row of the labels without features", sorted(labels.keys() - found.keys()))
    scans = [_scan(name, table, labels.get(name), request) for name, table in found.items()]
    without = [name for name, table in found.items() if "position" not in table.columns]
    for kind, names in (
        ("no label, so in no section of the datalist", [scan.name for scan in scans if scan.label is None]),
        ("no patient named, so taken for a patient of its own", [scan.name for scan in scans if not scan.patient]),
        (f"no positions, so slices are taken to be {SPACING_MM:g} mm apart", without),
    ):
        remarks.warnings.add(kind, names)
    return scans


def _scan(name: str, table: SliceTable, given: ScanLabel | None, request: FeatureRequest) -> ScanOfSlices:
    if not name or "/" in name or name in (".", ".."):
        raise InputError(f"{table.where(0)}: the scan {name!r} names no file: give a name without slashes")
    height = _heights(name, table, request)
    order = np.argsort(height, kind="stable")
    ids = table.columns.get("slice_id", [])
    if len(set(ids)) < len(ids):
        raise InputError(f"{table.path}: two slices of {name} have the same {request.roles.slice_id}: keep one")
    of_slices = [_zero_or_one(table, row, "slice_label") for row in order]
    slice_labels = [each for each in of_slices if each is not None]
    if 0 < len(slice_labels) < len(order):
        raise InputError(f"{table.path}: some slices of {name} have no {request.roles.slice_label}: label all, or none")
    _, patient, section = (_of_scan(name, table, role) for role in ("label", "patient", "section"))
    label = _zero_or_one(table, 0, "label")
    if given is not None:
        label, patient, section = given.label, given.patient or patient, given.section or section
    if label is None and slice_labels:
        label = max(slice_labels)
    if label == 0 and 1 in slice_labels:
        raise InputError(f"{table.path}: {name} is labelled 0, and has a slice labelled 1: correct one of them")
    if section not in ("", *SECTIONS):
        raise InputError(f"{table.where(0)}: the section {section!r} is none: give {', '.join(SECTIONS)}")
    known = "position" in table.columns
    positions = height[order] if known else np.arange(len(order)) * SPACING_MM
    encoder, settings = request.encoder or request.source.stem, json.dumps({"features": request.source.name})
    in_order = [ids[row] for row in order] if ids else []
    file = SliceFeatures(table.features[order], positions, in_order, {}, encoder, settings)
    return ScanOfSlices(name, label, patient, section, slice_labels or None, file)


def _heights(name: str, table: SliceTable, request: FeatureRequest) -> np.ndarray:
    """Return a number per slice, (N,), that grows from the lowest slice up."""
    role = "position" if "position" in table.columns else "order"
    if request.roles.order == AS_THEY_STAND and role == "order":
        return np.arange(len(table.features))
    if role not in table.columns:
        advice = f"name the column with --order or --position, or give --order {AS_THEY_STAND} where rows stand upwards"
        raise InputError(f"{table.path} says nothing of the order of slices: {advice}")
    try:
        height = np.array(table.columns[role], dtype=float)
    except ValueError as error:
        raise InputError(f"{table.path}: the {role} of a slice of {name} is no number ({error}): correct it") from error
    if not np.isfinite(height).all() or len(np.unique(height)) < len(height):
        raise InputError(f"{table.path}: two slices of {name} have one {role}, or one has none: give each its own")
    return height


def _of_scan(name: str, table: SliceTable, role: str) -> str:
    """Return what all slices of a scan say alike."""
    values = sorted(set(table.columns.get(role, [""])))
    if len(values) > 1:
        raise InputError(
            f"{table.path}: the slices of {name} have two of {role}, {values[0]!r} and {values[1]!r}: keep one"
        )
    return values[0]


def _zero_or_one(table: SliceTable, row: int, role: str) -> int | None:
    value = table.columns[role][row] if role in table.columns else ""
    if value not in ("", "0", "1"):
        raise InputError(f"{table.where(row)}: the {role} {value!r} is not one of the classes: give 0 or 1")
    return int(value) if value else None
