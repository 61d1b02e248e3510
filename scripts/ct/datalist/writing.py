# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""From a folder of head CT and a csv of labels to a MONAI datalist, split by patient, with a written check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError
from scripts.core.files import whole_file, write_whole
from scripts.ct.datalist import cq500, rsna
from scripts.ct.datalist import folder as table
from scripts.ct.datalist.images import Images
from scripts.datalist.split import (
    MAX_SHARE_OF_ONE_PATIENT,
    Cohort,
    Shares,
    as_datalist,
    as_text,
    figures,
    notes,
    split,
    without_copies,
)
from scripts.datalist.tables import SECTIONS, column_names
from scripts.datalist.writing import as_given, as_table, destination, require_shares

INDEX = ".headers.jsonl"
LABELS = ("stage_2_train.csv", "reads.csv", "labels.csv")  # as RSNA 2019, CQ500 and this project name them


def write_ct_datalist(
    folder: Path,
    labels: Path | None,
    output: Path | None,
    subtype: str,
    shares: Shares,
    seed: int,
    force: bool = False,
) -> str:
    """Writes the datalist, its check beside it and the index of headers; returns what to tell of them."""
    require_shares(shares)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the one that holds the scans")
    labels = _labels_in(folder) if labels is None else as_given(labels, folder)
    output, check_file = destination(folder, output, force)
    cohort, images = _collect(folder, labels, output.with_name(INDEX), subtype)
    cohort = without_copies(cohort)
    _require_patients(cohort, folder)

    sections = split(cohort.scans, shares, seed)
    counts = figures(sections)
    with whole_file(output) as beside:
        beside.write_text(as_text(as_datalist(sections)))
        leaks = images.leakage(json.loads(beside.read_text()), cohort.patients_not_in_headers())
        if leaks.example:
            raise InputError(
                f"{leaks.patients_in_several_sections} of {leaks.patients} patients and "
                f"{leaks.slices_in_several_sections} of {leaks.slices} slices would be in more than one section "
                f"(of {' and '.join(leaks.example)}): mend patient or section in {labels}"
            )
        cohort.warnings.add(
            "PatientID or study of the headers in more than one section, is the column patient right?",
            leaks.contradictions,
        )
        check: dict[str, Any] = {
            "datalist": output.name,
            "labels": labels.name,
            "subtype": subtype,
            "shares": dict(zip(SECTIONS, shares, strict=True)),
            "seed": seed,
            "sections": counts,
            "leakage": {name: count for name, count in leaks._asdict().items() if isinstance(count, int)},
            "notes": notes(sections),
            "rejected": cohort.rejected.as_json(),
            "warnings": cohort.warnings.as_json(),
        }
        write_whole(check_file, json.dumps(check, indent=4) + "\n")
    return "\n".join(
        [
            as_table(counts),
            f"leakage: {leaks.patients_in_several_sections} of {leaks.patients} patients and "
            f"{leaks.slices_in_several_sections} of {leaks.slices} slices are in more than one section",
            *(f"note: {note}" for note in notes(sections)),
            *(f"left out: {line}" for line in cohort.rejected.as_lines()),
            *(f"warning: {line}" for line in cohort.warnings.as_lines()),
            f"written: {output}, {check_file.name} and {INDEX}",
        ]
    )


def _labels_in(folder: Path) -> Path:
    found = [name for name in LABELS if (folder / name).is_file()]
    if len(found) != 1:
        what = " and ".join(found) if found else f"none of {', '.join(LABELS)}"
        raise InputError(f"{folder} holds {what}: name the csv of the labels with --labels FILE")
    return folder / found[0]


def _collect(folder: Path, labels: Path, index: Path, subtype: str) -> tuple[Cohort, Images]:
    """What the csv is shows in the names of its columns."""
    columns = column_names(labels)
    if {"id", "label"} <= columns:
        cohort, images = rsna.collect(folder, labels, index, subtype)
    elif subtype != "any":
        raise InputError(f"--subtype {subtype} is for RSNA's csv of slices, which {labels} is not: leave it out")
    elif {"name", "r1:ich"} <= columns:
        cohort, images = cq500.collect(folder, labels, index)
    elif {"scan", "label"} <= columns:
        cohort, images = table.collect(folder, labels, index)
    else:
        raise InputError(
            f"{labels} names neither scan, label nor ID, Label (RSNA 2019) nor name, R1:ICH (CQ500) in its first line: "
            "name its columns scan and label"
        )
    for file, reason in images.rejected:
        cohort.rejected.add(f"file that {reason}", [file.relative_to(folder)])
    return cohort, images


def _require_patients(cohort: Cohort, folder: Path) -> None:
    """Enough of them for a split."""
    if not cohort.scans:
        raise InputError(f"{folder} holds no scan that can be used: {'; '.join(cohort.rejected.as_lines())}")
    if any(scan.section for scan in cohort.scans):
        return
    scans = cohort.scans_of_busiest_patient()
    if 1 < len(cohort.scans) == scans:
        raise InputError(
            f"the {scans} scans in {folder} carry one PatientID, so that they cannot be split by patient: "
            "give a csv with the columns scan, label and patient"
        )
    if scans > max(3, MAX_SHARE_OF_ONE_PATIENT * len(cohort.scans)):
        cohort.warnings.add("most scans carry one PatientID, is it that of nobody?", [f"{scans} scans"])
