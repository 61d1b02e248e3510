# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Make a MONAI datalist of a folder of head CT and a csv of labels, split by patient, with a written check."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.core.errors import InputError
from scripts.ct.datalist.cq500 import collect_cq500
from scripts.ct.datalist.folder import collect_folder
from scripts.ct.datalist.images import Cohort, Images, Scan
from scripts.ct.datalist.rsna import collect_rsna
from scripts.datalist.split import MAX_SHARE_OF_ONE_PATIENT, count_sections, section_notes, split
from scripts.datalist.tables import column_names
from scripts.datalist.writing import (
    CheckedDatalist,
    DatalistRequest,
    as_given,
    as_text,
    destination,
    require_several_patients,
)

INDEX = ".headers.jsonl"
CONTRADICTION = "PatientID or study of the headers in more than one section, is the column patient right?"
LABEL_FILES = ("stage_2_train.csv", "reads.csv", "labels.csv")  # as RSNA 2019, CQ500 and this project name them


@dataclass(frozen=True, kw_only=True)
class CtDatalistRequest(DatalistRequest):
    """What `datalist ct` is asked for."""

    content = "scans"

    subtype: str = "any"  # of RSNA, which hemorrhage counts as positive


def write_ct_datalist(request: CtDatalistRequest) -> str:
    """Write the datalist, its check beside it and the index of headers; return a summary for the screen."""
    folder = request.folder
    labels = _labels_in(folder) if request.labels is None else as_given(request.labels, folder)
    output, check_file = destination(request)
    cohort, images = _collect(folder, labels, output.with_name(INDEX), request.subtype)
    cohort.drop_copies()
    require_several_patients(cohort.scans, cohort, folder, "scan")
    of_one_patient = max(Counter(scan.patient for scan in cohort.scans).values())
    if not cohort.scans[0].section and of_one_patient > max(3, MAX_SHARE_OF_ONE_PATIENT * len(cohort.scans)):
        cohort.warnings.add("most scans carry one PatientID, is it that of nobody?", [f"{of_one_patient} scans"])
    sections = split(cohort.scans, request.shares, request.seed)
    cohort.notes += section_notes(sections, [0, 1], "scans")
    text = as_text(sections)
    leakage, contradictions = images.leakage(json.loads(text), cohort.patients_not_in_headers())
    cohort.warnings.add(CONTRADICTION, contradictions)
    about = {"labels": labels.name, "subtype": request.subtype}
    checked = CheckedDatalist(text, leakage, count_sections(sections, count_scans), cohort, about, labels)
    summary = checked.write(request, output, check_file)
    return f"{summary}\nwritten: {output}, {check_file.name} and {INDEX}"


def _labels_in(folder: Path) -> Path:
    found = [name for name in LABEL_FILES if (folder / name).is_file()]
    if len(found) != 1:
        what = " and ".join(found) if found else f"none of {', '.join(LABEL_FILES)}"
        raise InputError(f"{folder} holds {what}: name the csv of the labels with --labels FILE")
    return folder / found[0]


def _collect(folder: Path, labels: Path, index: Path, subtype: str) -> tuple[Cohort, Images]:
    """Collect a cohort whose kind shows in the names of the csv's columns."""
    columns = column_names(labels)
    if {"id", "label"} <= columns:
        cohort, images = collect_rsna(folder, labels, index, subtype)
    elif subtype != "any":
        raise InputError(f"--subtype {subtype} is for RSNA's csv of slices, which {labels} is not: leave it out")
    elif {"name", "r1:ich"} <= columns:
        cohort, images = collect_cq500(folder, labels, index)
    elif {"scan", "label"} <= columns:
        cohort, images = collect_folder(folder, labels, index)
    else:
        public = "or ID, Label (RSNA 2019), or name, R1:ICH (CQ500)"
        raise InputError(f"{labels} has no columns scan, label, {public}: name them in the first line")
    for file, reason in images.rejected:
        cohort.rejected.add(f"file that {reason}", [str(file.relative_to(folder))])
    return cohort, images


def count_scans(scans: Sequence[Scan]) -> dict[str, float]:
    """Return what the check says of a section."""
    positive = sum(scan.label for scan in scans)
    return {
        "scans": len(scans),
        "patients": len({scan.patient for scan in scans}),
        "slices": sum(scan.slices for scan in scans),
        "positive_scans": positive,
        "prevalence": round(positive / len(scans), 4) if scans else 0.0,
    }
