# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the DICOM images of a scan or a cohort and reads their headers, without the pixels."""

import hashlib
import math
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pydicom
from pydicom import Dataset, uid
from pydicom.filereader import read_dataset
from tqdm import tqdm

from scripts.core.errors import InputError
from scripts.ct.dicom.files import MAX_ZIP_BYTES, FileIndex, ImageFile, members, walk
from scripts.ct.dicom.tags import Tags, quietly

MAX_SIDE = 4096  # rows and columns: a damaged header that claims more would fill the memory
LEFT_OUT = "and is left out"  # how a warning ends that names a file
INCOMPLETE = "holds no complete image"

_NOT_IMAGES = ("SR", "PR", "KO", "DOC", "PLAN", "RTSTRUCT", "RTPLAN", "RTRECORD", "REG")

# Only what is needed is ever read: a patient's name cannot leak from where it never was.
_TAGS: list[Any] = [
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"),
    *("Modality", "ImageType", "SeriesNumber", "AcquisitionNumber", "InstanceNumber"),
    *("SeriesDescription", "BodyPartExamined", "ConvolutionKernel", "ContrastBolusAgent", "ContrastBolusAgentSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns"),
    *("RescaleSlope", "RescaleIntercept", "SamplesPerPixel", "BitsAllocated"),
    *("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_GROUPS = (  # where an enhanced multi-frame file keeps what a classic one has at its top
    *("FrameContentSequence", "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"),
    *("PixelValueTransformationSequence", "CTImageFrameTypeSequence", "CTReconstructionSequence"),
)

_NO_AGENT = r"^(|n|na|n/a|0)$|^(no|not|non|none|without)\b(?![ -]*ionic)"
_PLAIN = (
    r"\b(without|sans|w/?o|w/out|plain|native?|unenhanced|ncct|nect|no( i\.?v\.?)? contrast"
    r"|(non|pre)[ -]?(contrast|enhanced|ce))\b"
)
_ENHANCED = r"\b(contrast|enhanced|cect|angio|cta|post[ -]?(contrast|iv|km))\b|\bc\+"
_SHARP_WORDS = r"\b(BONE|KNOCHEN|OSSEUX|LUNG)\b"

# Parts of the body, of which the codes run together: HEADNECK, CSPINE, CHESTABDPELVIS.
HEAD = re.compile(r"head|brain|skull|crani|cereb|face|facial|orbit|kopf|sch(ä|ae?)del|cr[aâ]ne|t[eê]te", re.IGNORECASE)
_BELOW = (
    r"neck|cervical|carotid|hals|spine|rachis|lumbar|lendenwirbel|sacrum|chest|thora(x|cic)|lunge?|heart|cardiac|coronary"
    r"|aorta|breast|abd(omen|ominal)?|liver|kidney|pancreas|colon|bladder|pelvi[sc]|becken|shoulder|humerus|elbow|forearm"
    r"|arm|wrist|hand|hip|femur|thigh|knee|ankle|foot|leg|extremity"
)
BELOW_HEAD = re.compile(_BELOW, re.IGNORECASE)
_WORD_BELOW_HEAD = re.compile(rf"(?<![a-z])([ctl]-?)?({_BELOW})s?(?![a-z])", re.IGNORECASE)


class Header(NamedTuple):
    """One image plane. A tag that is missing or makes no sense is "" or None."""

    file: ImageFile
    frame: int | None  # from 1, of a multi-frame file
    patient: str  # a short hash of the PatientID
    study: str
    series: str
    sop: str
    modality: str
    image_type: tuple[str, ...]
    kernel: str
    series_number: str
    contrast: bool  # an agent was given
    body_part: str  # in capitals
    samples: int  # per pixel: 1 is grey, 3 is colour
    rows: int
    columns: int
    orientation: tuple[float, ...] | None  # direction along a row, then down a column
    position: tuple[float, ...] | None  # LPS millimetres of the first pixel
    pixel_spacing: tuple[float, ...] | None  # millimetres between rows, then between columns
    thickness: float | None
    slope: float
    intercept: float
    acquisition: int | None
    instance: int | None


class Rejected(NamedTuple):
    """A file that cannot be used, and why."""

    file: ImageFile
    reason: str


_LAYOUT = [2, *Header._fields]  # the number grows when a field changes its meaning


def read_headers(
    root: Path | Sequence[Path], index: Path | None = None, progress: bool = False
) -> tuple[list[Header], list[Rejected]]:
    """Read the header of every image in these folders, zips and files, and list the files that cannot be used.

    Reports and files that are no DICOM are passed over. An index is a file that remembers the headers, so that a
    second walk reads only what is new.
    """
    roots = [root] if isinstance(root, Path) else list(root)
    for path in roots:
        if not path.exists():
            raise InputError(f"{path} does not exist: check the path")
    paths = list(dict.fromkeys(path for each in roots for path in walk(each)))
    remembered = FileIndex(index, _LAYOUT)
    found: list[Header | Rejected] = []
    with quietly():
        for path in tqdm(paths, desc="headers", unit="file", delay=5, disable=not progress):
            if (rows := remembered.get(path)) is None:
                rows = [[item.file.member, *item[1:]] for item in _read_path(path)]
                remembered.put(path, rows)
            found += [_from_row(path, row) for row in rows]
    remembered.close(paths)
    return [item for item in found if isinstance(item, Header)], [item for item in found if isinstance(item, Rejected)]


def _from_row(path: Path, row: Sequence[Any]) -> Header | Rejected:
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in row[1:]]
    return (Rejected if len(row) == 2 else Header)(ImageFile(path, row[0]), *values)


def _read_path(path: Path) -> list[Header | Rejected]:
    file = ImageFile(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return []  # a pipe would be waited for without end
        with path.open("rb") as stream:
            is_packed = stream.read(4) == b"PK\3\4"
            stream.seek(0)
            if not is_packed:
                return _read_image(file, stream, os.fstat(stream.fileno()).st_size)
            with zipfile.ZipFile(stream) as archive:
                if sum(info.file_size for info in archive.infolist()) > MAX_ZIP_BYTES:
                    return [Rejected(file, f"claims to unpack to more than {MAX_ZIP_BYTES // 1024**3} GB")]
                return [found for name in members(archive) for found in _read_member(archive, ImageFile(path, name))]
    except OSError as error:
        return [Rejected(file, f"cannot be opened ({error.strerror})")]
    except Exception:  # a damaged list of members fails in many ways
        return [Rejected(file, "is a damaged zip")]


def _read_member(archive: zipfile.ZipFile, file: ImageFile) -> list[Header | Rejected]:
    try:
        with archive.open(str(file.member)) as stream:
            return _read_image(file, cast(BinaryIO, stream), archive.getinfo(str(file.member)).file_size)
    except Exception:  # encrypted, damaged, of an unknown compression: each raises its own
        return [Rejected(file, "cannot be unpacked")]


def _read_image(file: ImageFile, stream: BinaryIO, size: int) -> list[Header | Rejected]:
    if stream.read(132)[128:] != b"DICM":
        lost = file.name.lower().endswith(".dcm")  # an empty `17.dcm` was a slice once
        return [Rejected(file, INCOMPLETE)] if lost else []
    try:
        # By the file meta, before anything is inflated: a megabyte may hold gigabytes.
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            return [Rejected(file, "is deflated: store it uncompressed")]
        stream.seek(0)
        dataset = pydicom.dcmread(stream, specific_tags=_TAGS, stop_before_pixels=True)
        planes = [*_planes(file, dataset)]
        is_cut = planes and size - stream.tell() < _bytes_of_pixels(dataset, planes)
        return [Rejected(file, INCOMPLETE)] if is_cut else [*planes]
    except InputError as error:
        return [Rejected(file, str(error))]
    except Exception:  # a damaged file fails in as many ways as there are places to damage it
        return [Rejected(file, INCOMPLETE)]


def _bytes_of_pixels(dataset: Dataset, planes: Sequence[Header]) -> int:
    """Return how many bytes must follow the header at least; compressed pixels may have any number."""
    syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    if syntax not in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        return 1
    values = sum(plane.rows * plane.columns * plane.samples for plane in planes)
    of_element = 8 if syntax == uid.ImplicitVRLittleEndian else 12  # its tag, its kind and its length
    return of_element + values * (Tags(dataset).integer("BitsAllocated") or 8) // 8


def _planes(file: ImageFile, dataset: Dataset) -> Iterator[Header]:
    """Yield the image planes of one file: one, or as many as it has frames; none where it is no image."""
    top = Tags(dataset)
    if top.text("Modality") in _NOT_IMAGES:
        return
    rows, columns = top.integer("Rows"), top.integer("Columns")
    if rows is None or columns is None:
        kind = top.text("SOPClassUID")
        if kind and "Image" not in uid.UID(kind).name:
            return  # raw data and the like, which scanners put beside the slices
        raise InputError(INCOMPLETE)
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise InputError(f"claims an image of {rows} x {columns}")

    frames = top.items("PerFrameFunctionalGroupsSequence")
    claimed = top.integer("NumberOfFrames") or 1
    if frames and len(frames) != claimed:
        raise InputError(f"claims {claimed} frames and describes {len(frames)}")
    if not frames:
        yield _header_of(file, None, top, is_placed=claimed == 1)
        return
    shared = top.items("SharedFunctionalGroupsSequence")[:1]
    for number, frame in enumerate(frames, start=1):
        groups = [part for of in (frame, *shared) for keyword in _GROUPS for part in Tags(of).items(keyword)[:1]]
        yield _header_of(file, number, Tags(*groups, dataset))


def _header_of(file: ImageFile, frame: int | None, tags: Tags, is_placed: bool = True) -> Header:
    (thickness,) = tags.numbers("SliceThickness", 1, above=0) or (None,)
    sharp_words = re.findall(_SHARP_WORDS, tags.text("SeriesDescription").upper())
    number, acquisition = tags.integer("SeriesNumber"), tags.integer("FrameAcquisitionNumber")
    patient = tags.text("PatientID").encode(errors="replace")
    return Header(
        file=file,
        frame=frame,
        patient=hashlib.blake2b(patient, digest_size=8).hexdigest() if patient else "",
        study=tags.text("StudyInstanceUID"),
        series=tags.text("SeriesInstanceUID"),
        sop=tags.text("SOPInstanceUID"),
        modality=tags.text("Modality"),
        image_type=tags.texts("FrameType") or tags.texts("ImageType"),
        kernel="\\".join(tags.texts("ConvolutionKernel")) or next(iter(sharp_words), ""),
        series_number="" if number is None else str(number),
        contrast=_contrast(tags),
        body_part=_body_part(tags),
        samples=tags.integer("SamplesPerPixel") or 1,
        rows=tags.integer("Rows") or 0,
        columns=tags.integer("Columns") or 0,
        orientation=_directions(tags),
        position=tags.numbers("ImagePositionPatient", 3) if is_placed else None,
        pixel_spacing=tags.numbers("PixelSpacing", 2, above=0),
        thickness=thickness,
        slope=_scale(tags, "RescaleSlope", 1.0),
        intercept=_scale(tags, "RescaleIntercept", 0.0),
        acquisition=tags.integer("AcquisitionNumber") if acquisition is None else acquisition,
        instance=tags.integer("InstanceNumber") if frame is None else frame,
    )


# The description is free text, which may name the patient: only what follows from it is kept.


def _contrast(tags: Tags) -> bool:
    description, agent = tags.text("SeriesDescription"), tags.text("ContrastBolusAgent")
    if re.search(_PLAIN, description, re.IGNORECASE):
        return False
    has_agent = not re.search(f"{_NO_AGENT}|{_PLAIN}", agent, re.IGNORECASE) or tags.items("ContrastBolusAgentSequence")
    return bool(has_agent or re.search(_ENHANCED, description, re.IGNORECASE))


def _body_part(tags: Tags) -> str:
    given, description = tags.text("BodyPartExamined").upper(), tags.text("SeriesDescription")
    if given or HEAD.search(description):
        return given
    found = _WORD_BELOW_HEAD.search(description)
    return found.group().upper() if found else ""


def _directions(tags: Tags) -> tuple[float, ...] | None:
    """Return two unit vectors at right angles, or nothing."""
    six = tags.numbers("ImageOrientationPatient", 6)
    if six is None:
        return None
    row, column = six[:3], six[3:]
    slant = sum(a * b for a, b in zip(row, column, strict=True))
    return six if max(abs(math.hypot(*row) - 1), abs(math.hypot(*column) - 1), abs(slant)) < 0.05 else None


def _scale(tags: Tags, keyword: str, default: float) -> float:
    if tags.value(keyword) is None:
        return default
    number = tags.numbers(keyword, 1)
    if number is None or (keyword == "RescaleSlope" and number[0] == 0):
        raise InputError(f"has no usable {keyword}")
    return number[0]
