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
"""The cohort of RSNA 2019: slices of all scans in one folder, and six rows of a csv for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from scripts.data.headers import Header
from scripts.data.series import by_study
from scripts.preparing.cohort import Cohort, Scan
from scripts.preparing.images import Images
from scripts.preparing.tables import SliceLabels, read_slice_labels


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
