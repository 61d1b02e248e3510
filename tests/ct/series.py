# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Small synthetic CT series, written as a scanner would."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SERIES_UID = "1.2.826.0.1.3680043.8.498.1"
STUDY_UID = "1.2.826.0.1.3680043.8.498.2"


def tilted(degrees: float) -> tuple[float, ...]:
    """ImageOrientationPatient of a gantry tilted about the patient's left-right axis."""
    radians = np.radians(degrees)
    return (1.0, 0.0, 0.0, 0.0, float(np.cos(radians)), float(-np.sin(radians)))


def couch(count: int, step: float = 5.0, start: float = -20.0) -> list[tuple[float, float, float]]:
    """ImagePositionPatient of slices taken while the couch moves along z alone, as it does under a tilted gantry."""
    return [(-30.0, -40.0, start + step * index) for index in range(count)]


def sop_uid(index: int, series: str = SERIES_UID) -> str:
    return f"{series}.{index + 1}"


def ramp(count: int = 4, rows: int = 6, columns: int = 8) -> np.ndarray:
    """[slices, rows, columns] stored values, every one different."""
    return np.arange(count * rows * columns, dtype=np.int16).reshape(count, rows, columns)


def write_slice(path: Path, pixels: np.ndarray, *, implicit: bool = False, **tags: Any) -> None:
    """One file; a tag given as None is left out, one given as a DataElement keeps its own type."""
    who = {"PatientName": "Secret^Name", "PatientID": "SECRET-ID", "Modality": "CT", "SeriesInstanceUID": SERIES_UID}
    what = {"SOPClassUID": pydicom.uid.CTImageStorage, "SOPInstanceUID": pydicom.uid.generate_uid()}
    # Rows are 0.5 mm apart and columns 0.25 mm: a mix-up shows.
    size = {"PixelSpacing": [0.5, 0.25], "SliceThickness": 5.0, "Rows": pixels.shape[0], "Columns": pixels.shape[1]}
    place = {"ImagePositionPatient": [0.0, 0.0, 0.0], "ImageOrientationPatient": list(AXIAL)}
    bits = {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": int(pixels.dtype.kind == "i")}
    grey = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelData": pixels.tobytes()}
    scale = {"RescaleSlope": 1, "RescaleIntercept": 0}
    values: dict[str, Any] = {**who, **what, **size, **place, **bits, **grey, **scale, **tags}
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = values["SOPClassUID"]
    meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"]
    meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.is_little_endian, dataset.is_implicit_VR = True, implicit  # pydicom 2 does not take them from the meta
    for keyword, value in values.items():
        if isinstance(value, DataElement):
            dataset.add(value)
        elif value is not None:
            setattr(dataset, keyword, value)
    dataset.save_as(str(path))


def write_series(
    folder: Path,
    stored: np.ndarray,
    positions: Sequence[tuple[float, float, float]] | None = None,
    names: Sequence[str] | None = None,
    numbers: Sequence[int] | None = None,
    **tags: Any,
) -> Path:
    """`stored` is [slices, rows, columns]; slice k gets sop_uid(k) of its series, and the k-th of each list given."""
    positions = couch(len(stored)) if positions is None else positions
    names = [f"{index:03d}.dcm" for index in range(len(stored))] if names is None else names
    for index, pixels in enumerate(stored):
        uid = sop_uid(index, tags.get("SeriesInstanceUID", SERIES_UID))
        number = None if numbers is None else numbers[index]
        own = {"SOPInstanceUID": uid, "ImagePositionPatient": list(positions[index]), "InstanceNumber": number}
        (folder / names[index]).parent.mkdir(parents=True, exist_ok=True)
        write_slice(folder / names[index], pixels, **{**own, **tags})
    return folder


def phantom(count: int = 10, size: int = 32) -> np.ndarray:
    """[slices, rows, columns] in HU: air, a skull, and a brain that is 1 HU brighter with each slice."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(x, 1.2 * y) / (size / 2)
    head = np.where(radius < 0.8, np.where(radius < 0.65, 30, 1000), -1000).astype(np.int16)
    heads = np.repeat(head[None], count, axis=0)
    return heads + np.arange(count, dtype=np.int16)[:, None, None] * (heads == 30)


HEAD = phantom(1, size=16)[0]
HEAD_PIXEL_MM = [10.0, 8.0]  # with which it is as large as a head


def write_head(
    folder: Path,
    uid: str,
    count: int = 10,
    step: float = 5.0,
    patient: str = "P1",
    study: str = "1.9",
    pixels: np.ndarray = HEAD,
    **tags: Any,
) -> list[str]:
    """A series beside the others of its study, all slices with the same pixels; their SOPInstanceUIDs."""
    own = {"SeriesInstanceUID": uid, "StudyInstanceUID": study, "PatientID": patient, "PixelSpacing": HEAD_PIXEL_MM}
    names = [f"{uid}_{index:03d}.dcm" for index in range(count)]
    write_series(folder, np.stack([pixels] * count), couch(count, step, 0.0), names, **{**own, **tags})
    return [sop_uid(index, uid) for index in range(count)]


def write_enhanced(
    path: Path, stored: np.ndarray, positions: Sequence[tuple[float, float, float]], **tags: Any
) -> Path:
    """One multi-frame file, each frame with its own rescale intercept: that of frame k is -1000 - k."""
    shared = _with(
        PixelMeasuresSequence=[_with(PixelSpacing=[0.5, 0.25], SliceThickness=5.0)],
        PlaneOrientationSequence=[_with(ImageOrientationPatient=list(AXIAL))],
        CTReconstructionSequence=[_with(ConvolutionKernel="H30s")],
    )
    frames = [
        _with(
            PlanePositionSequence=[_with(ImagePositionPatient=list(position))],
            PixelValueTransformationSequence=[_with(RescaleSlope=1, RescaleIntercept=-1000 - k)],
            CTImageFrameTypeSequence=[_with(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])],
            FrameContentSequence=[_with(FrameAcquisitionNumber=1)],
        )
        for k, position in enumerate(positions)
    ]
    groups = {
        "SOPClassUID": pydicom.uid.EnhancedCTImageStorage,
        "NumberOfFrames": len(stored),
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
        "PixelData": stored.tobytes(),
        **dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")),
        **dict.fromkeys(("RescaleSlope", "RescaleIntercept")),
    }
    write_slice(path, stored[0], **{**groups, **tags})
    return path


def _with(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def compress(path: Path, syntax: str) -> None:
    """Stores the pixels of this file in a compressed transfer syntax, without loss."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def zipped(folder: Path, path: Path) -> Path:
    """All files of a folder in a zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path
