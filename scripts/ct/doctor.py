# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Find what would stop a run on head CT, or spoil it, before an hour is spent."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
from monai.utils import ensure_tuple
from tqdm import tqdm

from scripts.core.cli import PROGRESS_AFTER_S
from scripts.core.errors import InputError
from scripts.ct.datalist.images import Images, by_place
from scripts.ct.datalist.writing import INDEX
from scripts.ct.dicom.headers import Header, Rejected
from scripts.ct.dicom.hounsfield import SURELY_NOT_AIR_HU, read_slices
from scripts.ct.dicom.series import MIN_SLICES, by_study, choose_series, slice_normal, spacings_mm, tilt_degrees
from scripts.ct.dicom.tags import quietly
from scripts.ct.reader import LOST_AT_MOST, is_volume, load_volume
from scripts.ct.scans import find_scans
from scripts.datalist.split import Leakage
from scripts.doctor.computer import HEAD_CT, examine_computer
from scripts.doctor.findings import Entries, Finding, Level, examine_leakage, examine_section, folded, sections_in

TISSUE_HU = (0.0, 80.0)
MIN_TISSUE = 0.03  # of a slice through the middle of a head

_LOOK_AT_SCAN = "it is read as it is; look at it, and correct or export it again where that is wrong"
_Scan = tuple[str, Sequence[str | int], list[str], np.ndarray]  # what it is, ids of slices, remarks, middle slice in HU


def examine_ct(path: Path, datalist: Path | None, output_dir: Path) -> Iterator[Finding]:
    """Examine the computer, a datalist where there is one, and the scans it names, or else those below a folder."""
    yield from examine_computer(output_dir, HEAD_CT)
    if not path.exists():
        yield Finding(Level.FAIL, f"{path} does not exist", "check the path")
        return
    if datalist is None and (path / "datalist.json").is_file():
        datalist = path / "datalist.json"
    bags: Entries = []
    try:
        if datalist is None:
            bags = find_scans(path) if path.is_dir() else [{"image": str(path), "bag_id": path.name}]
            yield Finding(Level.PASS, f"{path} holds {len(bags)} scan{'s' * (len(bags) > 1)}")
            images = _images_of(bags, None)
        else:
            sections = {}
            for section, given in sections_in(datalist).items():
                finding, sections[section] = examine_section(datalist, section, given, path, None, "scans")
                bags += sections[section]
                yield finding
            images = _images_of(bags, datalist.with_name(INDEX))
            yield _examine_patients(images.leakage(sections, {})[0])
        yield from folded(_examine_scans(bags, images))
    except InputError as error:
        yield Finding(Level.FAIL, str(error))


def _examine_patients(leakage: Leakage) -> Finding:
    if leakage.patients < 2 and not leakage.shared_images:
        text = f"the scans name {leakage.patients or 'no'} patient, so nobody knows who is in two sections"
        return Finding(Level.WARN, text, "make sure that nobody is")
    return examine_leakage(leakage, "ct")


def _images_of(bags: Sequence[Mapping[str, Any]], index: Path | None) -> Images:
    """Read the images of bags whose paths are whole; headers that an index remembers are not read again."""
    with TemporaryDirectory() as scratch:  # an index forgets what it is not asked for, so it is left alone
        copy = Path(scratch, INDEX)
        if index is not None and index.is_file():
            shutil.copyfile(index, copy)
        return Images(Path(), [path for bag in bags for path in _paths_of(bag)], copy)


def _paths_of(bag: Mapping[str, Any]) -> list[Path]:
    return [Path(path) for path in ensure_tuple(bag["image"])]


def _examine_scans(bags: Sequence[Mapping[str, Any]], images: Images) -> Iterator[Finding]:
    places = {path for bag in bags for path in _paths_of(bag)}
    headers, rejected = by_place(images.headers, places), by_place(images.rejected, places)
    for bag in tqdm(bags, desc="scans", unit="scan", delay=PROGRESS_AFTER_S):
        paths = _paths_of(bag)
        of_bag = [each for path in paths for each in headers[path]]
        yield examine_scan(bag, of_bag, [each for path in paths for each in rejected[path]])


def examine_scan(bag: Mapping[str, Any], headers: Sequence[Header], rejected: Sequence[Rejected]) -> Finding:
    """Examine a volume, or a study.

    Args:
        bag: of a datalist; one `image` that is a volume is read itself.
        headers: of the images of the study.
        rejected: its files that hold none.
    """
    path = _paths_of(bag)[0]
    try:
        text, ids, remarks, middle = _volume(path) if is_volume(path) else _study(headers, rejected)
        remarks += [*_label_remarks(bag, ids), *_implausible(middle)]
    except InputError as error:
        return Finding(Level.FAIL, str(error), name=bag["bag_id"])
    if len(ids) < MIN_SLICES:
        remarks.append("few slices for a head")
    if not remarks:
        return Finding(Level.PASS, text, "", bag["bag_id"], len(ids))
    return Finding(Level.WARN, f"{'; '.join(remarks)} ({text})", _LOOK_AT_SCAN, bag["bag_id"], len(ids))


def _volume(path: Path) -> _Scan:
    volume = load_volume(path)
    columns, rows, slices = volume.array.shape
    text = f"{slices} slices of {rows} x {columns}, {_spacing_and_tilt(volume.spacings, volume.tilt_degrees)}"
    return text, list(range(slices)), [], volume.array[..., slices // 2]


def _study(headers: Sequence[Header], rejected: Sequence[Rejected]) -> _Scan:
    remarks = []
    if rejected:
        (file, reason), count = rejected[0], len(rejected)
        remarks.append(f"{file.name} {reason}" + (f", one of {count} such files" if count > 1 else ""))
    if not headers:
        raise InputError(f"{'; '.join(['no images', *remarks])}: give the folder that holds the scan")
    if len(rejected) > (len(headers) + len(rejected)) // LOST_AT_MOST:
        raise InputError(f"{remarks[0]}: copy the scan again")
    studies = len(by_study(headers))
    if studies > 1:
        raise InputError(f"{studies} studies: give each a folder")
    choice = choose_series(headers, where="it")
    slices = choice.headers
    middle = slices[len(slices) // 2]
    syntax = _transfer_syntax(middle)
    pixels, lost, repaired = read_slices([middle], 0)
    if lost:
        where = f"the middle slice, {middle.file.name} ({syntax})"
        raise InputError(f"cannot decode {where}: copy the scan again, or store it uncompressed")
    geometry = _spacing_and_tilt(spacings_mm(slices), tilt_degrees(slice_normal(slices[0])))
    text = f"{len(slices)} slices of {middle.rows} x {middle.columns}, {geometry}, {_numbering(slices)}, {syntax}"
    if choice.skipped:
        text += f"; skipped {', '.join(choice.skipped)}"
    ids = [header.sop if header.frame is None else f"{header.sop}/{header.frame}" for header in slices]
    return text, ids, [*remarks, *choice.warnings, *repaired], pixels[0]


def _label_remarks(bag: Mapping[str, Any], ids: Sequence[str | int]) -> list[str]:
    """Return where labels of slices contradict that of the scan, or refuse those that do not fit the slices."""
    given = bag.get("instance_label")
    if given is None:
        return []
    lacking = sum(id_ not in given for id_ in ids) if isinstance(given, Mapping) else abs(len(ids) - len(given))
    if lacking:
        raise InputError(f"instance_label does not fit {lacking} of the {len(ids)} slices: label each, or leave it out")
    positive = sum(given.values() if isinstance(given, Mapping) else given)
    if "label" not in bag or not given or (positive > 0) == bag["label"]:
        return []
    verb = "is" if positive < 2 else "are"
    return [f"label {bag['label']}, though {positive or 'none'} of its slices {verb} positive"]


def _implausible(middle: np.ndarray) -> list[str]:
    """Return why a slice through the middle, in HU, is hardly that of a head in air."""
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
    """Return how InstanceNumber runs along the order that counts, that of the positions."""
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
    except Exception:  # the decoder reports it
        return "transfer syntax unknown"
