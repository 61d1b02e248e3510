# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slides in forms of the trade, of known content: DICOM, and Leica's SCN, which states bounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

TILE = 128
NANOMETRES = 1000  # of a micrometre: SCN counts in them


def write_dicom(
    folder: Path,
    image: np.ndarray,
    mpp: float,
    names: Sequence[str] = ("a.dcm", "b.dcm"),
    series: str | None = None,
    container: str | None = None,
    **tags: Any,
) -> Path:
    """A series of whole slide microscopy: a file per level, of which each is half as large as the one before."""
    series = series or generate_uid()
    for number, name in enumerate(names):
        level = np.asarray(Image.fromarray(image).reduce(2**number))
        _write_level(folder / name, level, mpp * 2**number, series, container, tags, original=number == 0)
    return folder


def _write_level(
    path: Path, image: np.ndarray, mpp: float, series: str, container: str | None, tags: dict[str, Any], original: bool
) -> None:
    height, width, _ = image.shape
    padded = np.pad(image, ((0, -height % TILE), (0, -width % TILE), (0, 0)), constant_values=255)
    across, down = padded.shape[1] // TILE, padded.shape[0] // TILE
    frames = padded.reshape(down, TILE, across, TILE, 3).swapaxes(1, 2)
    slide = _of_class(VLWholeSlideMicroscopyImageStorage)
    slide.ImageType = ["ORIGINAL" if original else "DERIVED", "PRIMARY", "VOLUME", "NONE" if original else "RESAMPLED"]
    slide.Modality, slide.SeriesInstanceUID = "SM", series
    if container is not None:
        slide.ContainerIdentifier = container
    slide.DimensionOrganizationType = "TILED_FULL"
    slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows = width, height
    slide.TotalPixelMatrixFocalPlanes, slide.NumberOfOpticalPaths = 1, 1
    slide.NumberOfFrames, slide.Rows, slide.Columns = across * down, TILE, TILE
    slide.SamplesPerPixel, slide.PhotometricInterpretation, slide.PlanarConfiguration = 3, "RGB", 0
    slide.BitsAllocated, slide.BitsStored, slide.HighBit, slide.PixelRepresentation = 8, 8, 7, 0
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared.PixelMeasuresSequence = [measures]
    slide.SharedFunctionalGroupsSequence = [shared]
    slide.PixelData = frames.tobytes()
    for keyword, value in tags.items():
        setattr(slide, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    slide.save_as(path, enforce_file_format=True)


def write_ct(path: Path) -> None:
    """A slice of a scan, which is no slide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = _of_class(CTImageStorage)
    scan.Modality, scan.SeriesInstanceUID, scan.ImageType = "CT", generate_uid(), ["ORIGINAL", "PRIMARY", "VOLUME"]
    scan.save_as(path, enforce_file_format=True)


def _of_class(sop_class: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    return dataset


def write_scn(path: Path, image: np.ndarray, mpp: float, canvas: tuple[int, int], corner: tuple[int, int]) -> Path:
    """A slide whose scanned part, the image, lies at a corner (x, y) of an empty canvas (width, height), in pixels."""
    height, width, _ = image.shape
    unit = round(mpp * NANOMETRES)
    levels = [image, np.asarray(Image.fromarray(image).reduce(4))]
    pixels = "".join(
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{number}" ifd="{number}"/>'
        for number, level in enumerate(levels)
    )
    scan = (
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
    )
    view = " ".join(
        f'{name}="{value * unit}"'
        for name, value in zip(("sizeX", "sizeY", "offsetX", "offsetY"), (width, height, *corner), strict=True)
    )
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{canvas[0] * unit}" sizeY="{canvas[1] * unit}"><image><pixels>{pixels}</pixels>'
        f"<view {view}/>{scan}</image></collection></scn>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    kind: dict[str, Any] = {"photometric": "rgb", "compression": "deflate", "tile": (TILE, TILE), "metadata": None}
    kind |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, level in enumerate(levels):
            writer.write(level, description=text if number == 0 else None, **kind)
    return path
