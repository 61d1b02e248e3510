# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the pixels of slices in Hounsfield units, past the traps that CT files set."""

import io
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pydicom
from pydicom import Dataset

from scripts.core.errors import InputError
from scripts.ct.dicom.decoding import PIXEL_TAGS, own_decoder
from scripts.ct.dicom.files import ImageFile, Opener
from scripts.ct.dicom.headers import Header
from scripts.ct.dicom.tags import Tags, quietly

MAX_VOXELS = 2**31  # 8 GB; a head of 1000 slices of 1024 x 1024 has half as many
AIR_HU = -1024.0  # scanners pad with -2000, -3024, ...: below air there is nothing to see
SURELY_AIR_HU, SURELY_NOT_AIR_HU = -700.0, -300.0

UNWRAPPED = "values that had wrapped at 12 bits are unwrapped"
INVERTED = "values that were stored inverted (MONOCHROME1) are turned back"


def read_slices(
    headers: Sequence[Header], max_lost: int, where: str = "a scan"
) -> tuple[np.ndarray, list[int], list[str]]:
    """Read float32 [slices, rows, columns] in HU; say which slices hold no complete image, and what was repaired.

    When more than `max_lost` slices are lost, no more is read. `where` is the scan's path, for errors.
    """
    count, rows, columns = len(headers), headers[0].rows, headers[0].columns
    if count * rows * columns > MAX_VOXELS:
        too_many = f"{where} has {count} slices of {rows} x {columns}, too many to hold in memory"
        raise InputError(f"{too_many}: give one head, or export it smaller")
    volume = np.empty((count, rows, columns), np.float32)
    in_file: dict[ImageFile, list[int]] = defaultdict(list)
    for index, header in enumerate(headers):
        in_file[header.file].append(index)
    lost: list[int] = []
    repaired: set[str] = set()
    with Opener() as opener, quietly():
        for file, indices in in_file.items():
            try:
                with opener.open(file) as stream:
                    content = stream.read()
                dataset, frames = _stored(content, headers[indices[0]])
                for index in indices:
                    frame = frames[(headers[index].frame or 1) - 1]
                    volume[index] = _hounsfield(frame, headers[index], dataset, repaired)
            except Exception:  # a damaged file fails in as many ways as there are places to damage it
                lost += indices
            if len(lost) > max_lost:
                break
    return volume, sorted(lost), sorted(repaired)


def _stored(content: bytes, header: Header) -> tuple[Dataset, np.ndarray]:
    """Return the tags of a file's pixels, and the pixels [frames, rows, columns]."""
    dataset = pydicom.dcmread(io.BytesIO(content), specific_tags=PIXEL_TAGS)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        pixels = own_decoder().decode(content, Tags(dataset).integer("NumberOfFrames") or 1)
    else:
        pixels = dataset.pixel_array  # raises where there are fewer bytes than rows and columns need
    frames = pixels.reshape(-1, header.rows, header.columns)
    if header.frame is None and len(frames) > 1:
        raise ValueError("more images than the header describes")
    return dataset, frames


def _hounsfield(stored: np.ndarray, header: Header, dataset: Dataset, repaired: set[str]) -> np.ndarray:
    """Return float32 [rows, columns], padding as air."""
    padding = _padding(stored, dataset)
    bits, unsigned = Tags(dataset).integer("BitsStored") or 16, stored.dtype.kind == "u"
    if bits == 12 and unsigned and header.intercept > -100 and stored.max() >= 3096:
        # Without an offset 12 unsigned bits have no room for air: it wrapped round to their upper end.
        hounsfield = _scaled((stored.astype(np.int32) + 1000) % 4096, header.slope, -1000.0)
        repaired.add(UNWRAPPED)
    else:
        hounsfield = _scaled(stored, header.slope, header.intercept)
    if Tags(dataset).text("PhotometricInterpretation") == "MONOCHROME1":
        # By the standard only their display is inverted, but some exporters inverted the values.
        inverse = (2**bits if unsigned else 0) - 1 - stored.astype(np.int64)
        turned_back = _scaled(inverse, header.slope, header.intercept)
        if border_hu(hounsfield, padding) > SURELY_NOT_AIR_HU and border_hu(turned_back, padding) < SURELY_AIR_HU:
            hounsfield = turned_back
            repaired.add(INVERTED)
    hounsfield[padding] = AIR_HU
    return np.maximum(hounsfield, np.float32(AIR_HU), out=hounsfield)


def _scaled(values: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    return values.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return where the image is only filled up, [rows, columns]."""
    given = [Tags(dataset).integer(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if given[0] is None:
        return np.zeros(stored.shape, bool)
    # Unsigned 63536 in the header is the same padding as signed -2000 in the pixels.
    limits = np.array([value for value in given if value is not None]).astype(stored.dtype)
    return (stored >= limits.min()) & (stored <= limits.max())


def border_hu(hounsfield: np.ndarray, padding: np.ndarray | None = None) -> float:
    """Return the median around the head; NaN where that is padding alone."""
    outer = np.ones(hounsfield.shape, bool) if padding is None else ~padding
    margin = max(min(hounsfield.shape) // 32, 1)
    outer[margin:-margin, margin:-margin] = False
    return float(np.median(hounsfield[outer])) if outer.any() else float("nan")
