# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Find what would stop a run on head CT, or spoil it, before an hour is spent."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
from tqdm import tqdm

from scripts.core.bags import paths_of
from scripts.core.cli import PROGRESS_AFTER_S
from scripts.core.errors import InputError
from scripts.ct.datalist.from_features import leakage_by_names
from scripts.ct.datalist.images import Images, by_place
from scripts.ct.datalist.slice_tables import TABLES, Roles, grouped, read_slice_tables
from scripts.ct.datalist.writing import INDEX
from scripts.ct.dicom.headers import Header, Rejected
from scripts.ct.dicom.hounsfield import read_slices
from scripts.ct.dicom.series import positions_mm, slice_normal, spacings_mm, tilt_degrees
from scripts.ct.dicom.tags import quietly
from scripts.ct.features import SliceFeatures, find_slice_features, is_feature_file, read_slice_features
from scripts.ct.plausible import doubt_of_head_ct, few_slices
from scripts.ct.reader import choose_scan, is_volume, load_volume, pixel_mm, require_utf8
from scripts.ct.scans import find_scans
from scripts.ct.transforms import slice_labels
from scripts.doctor.computer import HEAD_CT, examine_computer
from scripts.doctor.findings import Entries, Finding, Level, examine_leakage, examine_section, folded, sections_in

_LOOK_AT_SCAN = "it is read as it is; look at it, and correct or export it again where that is wrong"
_Scan = tuple[str, Sequence[str | int], list[str]]  # what it is, ids of slices, remarks


def examine_ct(path: Path, datalist: Path | None, output_dir: Path) -> Iterator[Finding]:
    """Examine the computer, a datalist where there is one, and the scans it names, or else those below a folder.

    In place of scans there may be their slice features, as feature files or as a table that is none yet.
    """
    yield from examine_computer(output_dir, HEAD_CT)
    if datalist is None and (path / "datalist.json").is_file():
        datalist = path / "datalist.json"
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist: check the path")
        if path.suffix.lower() in TABLES and not is_feature_file(path):
            yield examine_table(path)
            return
        sections = {}
        if datalist is None:
            sections[""] = _scans_at(path)
            yield Finding(Level.PASS, f"{path} holds {len(sections[''])} scan{'s' * (len(sections['']) > 1)}")
        else:
            for section, given in sections_in(datalist).items():
                finding, sections[section] = examine_section(datalist, section, given, path, None, "scans")
                yield finding
        bags = [bag for own in sections.values() for bag in own]
        are_features = bags and all(str(bag["image"]).endswith(".h5") for bag in bags)
        images = None if are_features else _images_of(bags, datalist and datalist.with_name(INDEX))
        if datalist is not None:
            leakage = leakage_by_names(sections) if images is None else images.leakage(sections, {})[0]
            if leakage.patients < 2 and not leakage.shared_images:
                text = f"the scans name {leakage.patients or 'no'} patient, so nobody knows who is in two sections"
                yield Finding(Level.WARN, text, "make sure that nobody is")
            else:
                yield examine_leakage(leakage, "ct")
        if images is not None:
            yield from folded(_examine_scans(bags, images))
            return
        yield from folded(_examine_features(bags))
        listed = {str(bag["image"]) for bag in bags}
        files = find_slice_features(path) if path.is_dir() else []
        if rest := [each["bag_id"] for each in files if each["image"] not in listed]:
            text = f"{len(rest)} feature files are in no section, such as {rest[0]}"
            yield Finding(Level.INFO, text, "label their scans to train on them or to evaluate")
    except InputError as error:
        yield Finding(Level.FAIL, str(error))


def _scans_at(path: Path) -> Entries:
    if not path.is_dir():
        return [{"image": str(path), "bag_id": path.name}]
    return list(find_slice_features(path)) if any(path.glob("*.h5")) else find_scans(path)


def examine_table(path: Path) -> Finding:
    """Examine features of slices that `python -m scripts features ct` is to make feature files of."""
    tables = read_slice_tables(path, Roles(), "feature")
    scans, columns = grouped(tables), tables[0].columns
    text = f"{len(scans)} scans, {tables[0].features.shape[1]} features of each slice, all finite"
    lacks = [] if {"order", "position"} & columns.keys() else ["no column of the order"]
    lacks += [] if {"label", "slice_label"} & columns.keys() else ["no label"]
    advice = "make feature files of it: python -m scripts features ct"
    if lacks:
        return Finding(
            Level.WARN, f"{path}: {text}, but {' and '.join(lacks)}", f"{advice} --help says how to name them"
        )
    return Finding(Level.PASS, f"{path}: {text}; {advice}")


def _examine_features(bags: Entries) -> Iterator[Finding]:
    """Examine feature files, which are to be of one network: each is compared with the first that can be read."""
    first: SliceFeatures | None = None
    for bag in tqdm(bags, desc="scans", unit="scan", delay=PROGRESS_AFTER_S):
        try:
            scan = read_slice_features(bag["image"])
            first = first or scan
            slices, width = scan.features.shape
            text = f"{slices} slices of {width} features, {scan.encoder}"
            if width != first.features.shape[1]:
                raise InputError(f"{width} features of each slice, where others have {first.features.shape[1]}")
            remarks = _label_remarks(bag, scan.sop_instance_uids or list(range(slices)))
        except InputError as error:
            yield Finding(Level.FAIL, str(error), name=bag["bag_id"])
            continue
        if scan.encoder != first.encoder:
            remarks.append(f"the encoder is {scan.encoder}, of others {first.encoder}")
        if (np.diff(scan.positions_mm) <= 0).any():
            remarks.append("positions do not ascend, so the order of slices is in doubt")
        if np.ptp(scan.features) == 0:
            remarks.append("all features are alike")
        remarks += few_slices(slices)
        level = Level.WARN if remarks else Level.PASS
        told, fix = (f"{'; '.join(remarks)} ({text})", "make its file again") if remarks else (text, "")
        yield Finding(level, told, fix, bag["bag_id"], slices)


def _images_of(bags: Sequence[Mapping[str, Any]], index: Path | None) -> Images:
    """Read the images of bags whose paths are whole; headers that an index remembers are not read again."""
    with TemporaryDirectory() as scratch:  # an index forgets what it is not asked for, so it is left alone
        copy = Path(scratch, INDEX)
        if index is not None and index.is_file():
            shutil.copyfile(index, copy)
        return Images(Path(), [path for bag in bags for path in _paths_of(bag)], copy)


def _paths_of(bag: Mapping[str, Any]) -> list[Path]:
    return list(map(Path, paths_of(bag["image"])))


def _examine_scans(bags: Sequence[Mapping[str, Any]], images: Images) -> Iterator[Finding]:
    places = {path for bag in bags for path in _paths_of(bag)}
    headers, rejected = by_place(images.headers, places), by_place(images.rejected, places)
    for bag in tqdm(bags, desc="scans", unit="scan", delay=PROGRESS_AFTER_S):
        paths = _paths_of(bag)
        of_bag = [each for path in paths for each in headers[path]]
        yield examine_scan(bag, of_bag, [each for path in paths for each in rejected[path]])


def examine_scan(bag: Mapping[str, Any], headers: Sequence[Header], rejected: Sequence[Rejected]) -> Finding:
    """Examine a bag whose image is a volume, or a study with these images and files that hold none."""
    path = _paths_of(bag)[0]
    try:
        require_utf8(*_paths_of(bag))
        text, ids, remarks = _volume(path) if is_volume(path) else _study(headers, rejected)
        remarks += [*_label_remarks(bag, ids), *few_slices(len(ids))]
    except InputError as error:
        return Finding(Level.FAIL, str(error), name=bag["bag_id"])
    if not remarks:
        return Finding(Level.PASS, text, "", bag["bag_id"], len(ids))
    return Finding(Level.WARN, f"{'; '.join(remarks)} ({text})", _LOOK_AT_SCAN, bag["bag_id"], len(ids))


def _volume(path: Path) -> _Scan:
    volume = load_volume(path)
    columns, rows, slices = volume.array.shape
    text = f"{slices} slices of {rows} x {columns}, {_spacing_and_tilt(volume.spacings, volume.tilt_degrees)}"
    doubt = doubt_of_head_ct(volume.array[..., slices // 2], pixel_mm(volume.affine), volume.positions_mm)
    return text, list(range(slices)), [doubt] * bool(doubt)


def _study(headers: Sequence[Header], rejected: Sequence[Rejected]) -> _Scan:
    if not headers and not rejected:
        raise InputError("it holds no images: give the folder that holds the scan")
    choice = choose_scan(headers, rejected, None, "it")
    remarks = [f"{rejected[0].file.name} {rejected[0].reason}"] if rejected else []
    if len(rejected) > 1:
        remarks[0] += f", one of {len(rejected)} such files"
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
    doubt = doubt_of_head_ct(pixels[0], middle.pixel_spacing or (), positions_mm(slices))
    return text, ids, [*remarks, *choice.warnings, *repaired, *[doubt] * bool(doubt)]


def _label_remarks(bag: Mapping[str, Any], ids: Sequence[str | int]) -> list[str]:
    """Return where labels of slices contradict that of the scan, or refuse those that do not fit the slices."""
    if "instance_label" not in bag:
        return []
    positive = int(slice_labels(bag["instance_label"], ids, bag["bag_id"]).sum())
    if (positive > 0) == bag.get("label", positive > 0):
        return []
    return [f"label {bag['label']} contradicts its slices, {positive} of {len(ids)} positive"]


def _spacing_and_tilt(spacings: np.ndarray, tilt: float) -> str:
    if not len(spacings):
        return f"tilt {tilt:.1f} degrees"
    ends = " to ".join(dict.fromkeys(f"{value:.2f}" for value in (spacings.min(), spacings.max())))
    return f"spacing {ends} mm, tilt {tilt:.1f} degrees"


def _numbering(slices: Sequence[Header]) -> str:
    """Return how InstanceNumber runs along the order that counts, that of the positions."""
    numbers = [header.instance for header in slices if header.instance is not None]
    ascending = sorted(set(numbers))
    if len(numbers) < len(slices):
        return "InstanceNumber missing"
    if numbers == ascending:
        return "InstanceNumber ascending"
    return "InstanceNumber descending" if numbers == ascending[::-1] else "InstanceNumber out of order"


def _transfer_syntax(header: Header) -> str:
    with suppress(Exception), header.file.open() as stream, quietly():  # the decoder reports it
        meta = pydicom.dcmread(stream, specific_tags=["Rows"], stop_before_pixels=True).file_meta
        return str(meta.TransferSyntaxUID.name)
    return "transfer syntax unknown"
