# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""From a folder of head CT and a csv of labels to a MONAI datalist, split by patient, with a written check."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from scripts.errors import InputError
from scripts.files import whole_file, writable_folder, write_whole
from scripts.preparing import cq500, rsna, table
from scripts.preparing.cohort import (
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
from scripts.preparing.images import Images
from scripts.preparing.tables import SECTIONS, column_names

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


def require_shares(shares: Any) -> None:
    is_list = isinstance(shares, (list, tuple)) and len(shares) == len(SECTIONS)
    if (
        not is_list
        or not all(isinstance(share, (int, float)) for share in shares)
        or min(shares) < 0
        or not math.isclose(sum(shares), 1, abs_tol=1e-6)
    ):
        raise InputError(f"--shares {shares!r}: give three numbers that add up to 1, for {', '.join(SECTIONS)}")


def as_given(labels: Path, folder: Path) -> Path:
    """A path from where the user is, else from the folder of the cohort."""
    return folder / labels if not labels.exists() and (folder / labels).exists() else labels


def _labels_in(folder: Path) -> Path:
    found = [name for name in LABELS if (folder / name).is_file()]
    if len(found) != 1:
        what = " and ".join(found) if found else f"none of {', '.join(LABELS)}"
        raise InputError(f"{folder} holds {what}: name the csv of the labels with --labels FILE")
    return folder / found[0]


def destination(folder: Path, output: Path | None, force: bool) -> tuple[Path, Path]:
    """Where the datalist and its check go; what somebody wrote by hand is not overwritten."""
    output = _writable(folder, output)
    check_file = output.with_name(f"{output.stem}_check.json")
    if output.exists() and not check_file.exists() and not force:
        raise InputError(f"{output} is there, and no work of this command: give another --output, or --force")
    return output, check_file


def _writable(folder: Path, output: Path | None) -> Path:
    if output is None:
        try:
            return writable_folder(folder) / "datalist.json"
        except InputError as error:
            raise InputError(f"{folder} takes no files: say with --output FILE where the datalist goes") from error
    if output.is_dir():
        output = output / "datalist.json"
    writable_folder(output.parent)
    return output


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


def as_table(counts: dict[str, dict[str, float]]) -> str:
    columns = list(counts["total"])
    rows = [
        ["section", *columns],
        *([name, *(f"{own[column]:.9g}" for column in columns)] for name, own in counts.items()),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
