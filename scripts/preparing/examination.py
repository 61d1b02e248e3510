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
"""Whether one scan can be read, and what there is to know about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from scripts.data.dicom import LOST_AT_MOST
from scripts.data.headers import Header, Rejected
from scripts.data.hounsfield import SURELY_NOT_AIR_HU, read_slices
from scripts.data.series import MIN_SLICES, by_study, choose_series, slice_normal, spacings_mm, tilt_degrees
from scripts.data.tags import quietly
from scripts.data.volumes import load_volume
from scripts.errors import InputError
from scripts.preparing.findings import Level, ScanFinding

TISSUE_HU = (0.0, 80.0)
MIN_TISSUE = 0.03  # of a slice through the middle of a head


def examine_volume(bag: Mapping[str, Any], path: Path) -> ScanFinding:
    """A NIfTI or NRRD file."""
    name = bag["bag_id"]
    try:
        volume = load_volume(path)
    except InputError as error:
        return ScanFinding(name, Level.FAIL, str(error))
    columns, rows, slices = volume.array.shape
    text = f"{slices} slices of {rows} x {columns}, {_spacing_and_tilt(volume.spacings, volume.tilt)}"
    return _judged(bag, text, list(range(slices)), [], volume.array[..., slices // 2])


def examine_dicom(bag: Mapping[str, Any], headers: Sequence[Header], rejected: Sequence[Rejected]) -> ScanFinding:
    """A study, its images and the files that hold none."""
    name = bag["bag_id"]
    remarks = []
    if rejected:
        (file, reason), count = rejected[0], len(rejected)
        remarks.append(f"{file.name} {reason}" + (f", one of {count} such files" if count > 1 else ""))
    if not headers:
        return ScanFinding(name, Level.FAIL, "; ".join(["no images", *remarks]), "give the folder that holds the scan")
    if len(rejected) > (len(headers) + len(rejected)) // LOST_AT_MOST:
        return ScanFinding(name, Level.FAIL, "; ".join(remarks), "copy the scan again")
    studies = len(by_study(headers))
    if studies > 1:
        return ScanFinding(name, Level.FAIL, f"{studies} studies", "give each a folder")
    try:
        choice = choose_series(headers, where="it")
    except InputError as error:
        return ScanFinding(name, Level.FAIL, str(error))

    slices = choice.headers
    middle = slices[len(slices) // 2]
    syntax = _transfer_syntax(middle)
    pixels, lost, mended = read_slices([middle], 0)
    if lost:
        return ScanFinding(
            name,
            Level.FAIL,
            f"the pixels of the middle slice, {middle.file.name} ({syntax}), cannot be decoded",
            "copy the scan again, or store it uncompressed",
        )
    text = ", ".join(
        [
            f"{len(slices)} slices of {middle.rows} x {middle.columns}",
            _spacing_and_tilt(spacings_mm(slices), tilt_degrees(slice_normal(slices[0]))),
            _numbering(slices),
            syntax,
        ]
    )
    if choice.set_aside:
        text += f"; set aside {', '.join(choice.set_aside)}"
    ids = [header.sop if header.frame is None else f"{header.sop}/{header.frame}" for header in slices]
    return _judged(bag, text, ids, [*remarks, *choice.warnings, *mended], pixels[0])


def _judged(
    bag: Mapping[str, Any], text: str, ids: Sequence[str | int], remarks: Sequence[str], middle: np.ndarray
) -> ScanFinding:
    name = bag["bag_id"]
    given = bag.get("instance_label")
    if given is not None:
        lacking = sum(id_ not in given for id_ in ids) if isinstance(given, Mapping) else abs(len(ids) - len(given))
        if lacking:
            return ScanFinding(
                name,
                Level.FAIL,
                f"instance_label does not fit {lacking} of the {len(ids)} slices",
                "label every slice, or leave instance_label out",
            )
    remarks = [*remarks, *_contradictions(bag), *_implausible(middle)]
    if len(ids) < MIN_SLICES:
        remarks.append("few slices for a head")
    if not remarks:
        return ScanFinding(name, Level.PASS, text, slices=len(ids))
    fix = "it is read as it is; look at it, and mend or export it again where that is wrong"
    return ScanFinding(name, Level.WARN, f"{'; '.join(remarks)} ({text})", fix, len(ids))


def _contradictions(bag: Mapping[str, Any]) -> list[str]:
    given = bag.get("instance_label")
    if not given or "label" not in bag:
        return []
    positive = sum(given.values() if isinstance(given, Mapping) else given)
    if (positive > 0) == bag["label"]:
        return []
    return [
        f"label {bag['label']}, though {positive or 'none'} of its slices {'is' if positive < 2 else 'are'} positive"
    ]


def _implausible(middle: np.ndarray) -> list[str]:
    """Why a slice through the middle, in HU, is hardly that of a head in air."""
    margin = max(min(middle.shape) // 32, 1)
    inside = np.zeros(middle.shape, dtype=bool)
    inside[margin:-margin, margin:-margin] = True
    border = float(np.median(middle[~inside]))
    tissue = float(np.mean((middle > TISSUE_HU[0]) & (middle < TISSUE_HU[1])))
    found = []
    if border > SURELY_NOT_AIR_HU:
        found.append(f"{border:.0f} HU at the border of the middle slice, where air is expected")
    if tissue < MIN_TISSUE:
        found.append(f"{tissue:.1%} of the middle slice is between 0 and 80 HU, where brain is expected")
    return found


def _spacing_and_tilt(spacings: np.ndarray, tilt: float) -> str:
    if not len(spacings):
        return f"tilt {tilt:.1f} degrees"
    low, high = (f"{value:.2f}" for value in (spacings.min(), spacings.max()))
    return f"spacing {low if low == high else f'{low} to {high}'} mm, tilt {tilt:.1f} degrees"


def _numbering(slices: Sequence[Header]) -> str:
    """How InstanceNumber runs along the order that counts, that of the positions."""
    numbers = [header.instance for header in slices]
    if any(number is None for number in numbers):
        return "InstanceNumber missing"
    steps = np.sign(np.diff([number for number in numbers if number is not None]))
    if (steps > 0).all():
        return "InstanceNumber ascending"
    return "InstanceNumber descending" if (steps < 0).all() else "InstanceNumber out of order"


def _transfer_syntax(header: Header) -> str:
    try:
        with header.file.open() as stream, quietly():
            meta = pydicom.dcmread(stream, specific_tags=["Rows"], stop_before_pixels=True).file_meta
        return str(meta.TransferSyntaxUID.name)
    except Exception:  # the decoder will have its say
        return "transfer syntax unknown"
