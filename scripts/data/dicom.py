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
"""A head CT as it lies on disk, a folder of DICOM slices or a NIfTI file, to one volume in Hounsfield units."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import orientation_ras_lps
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from pydicom.misc import is_dicom

from scripts.errors import InputError

logger = logging.getLogger(__name__)

AIR_HU = -1024.0  # scanners pad with -2000, -3024, ...: below air there is nothing to see
MAX_TILT_DEGREES = 45.0  # beyond it the slices are coronal or sagittal
MIN_INTACT_SHARE = 0.9  # of the files of a scan, so that a broken copy is not read as a short scan
MAX_EVEN_SPACING_RATIO = 1.5
SAME_POSITION_MM = 0.01

_NIFTI_SUFFIXES = (".nii", ".nii.gz")
_NOT_IMAGES = ("SR", "PR", "KO")  # dose reports and the like, that archives put beside the slices

# Only what the volume needs is ever read: a patient's name cannot leak from where it never was.
_IDENTITY = ["Modality", "SeriesInstanceUID", "SOPInstanceUID"]
_GEOMETRY = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"]
_HOUNSFIELD = ["RescaleSlope", "RescaleIntercept", "PixelPaddingValue"]
_PIXELS = [
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "PixelData"),
]


@dataclass(frozen=True)
class Series:
    """One scan, its slices from inferior to superior."""

    array: np.ndarray  # float32 [columns, rows, slices] in HU
    affine: np.ndarray  # (4, 4) voxel -> RAS millimetres, sheared where the gantry was tilted
    sop_instance_uids: list[str]  # one per slice; none for NIfTI, which does not keep them
    positions: np.ndarray  # (slices,) millimetres along the slice normal
    spacings: np.ndarray  # (slices - 1,) millimetres from a slice's origin to the next one's
    tilt: float  # degrees between the slice normal and the patient's long axis
    warnings: list[str]


class SeriesReader(ImageReader):
    """`LoadImaged(keys="image", reader=SeriesReader())`: a folder with one CT series, or a NIfTI file in HU."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[Path, ...]:
        # LoadImage turns whatever read raises into a wall of text, and lets through what get_data raises.
        return tuple(Path(path) for path in ensure_tuple(data))

    def get_data(self, img: tuple[Path, ...]) -> tuple[np.ndarray, dict]:
        if len(img) != 1:
            raise InputError(
                f"{img[0]} and {len(img) - 1} more paths given as one image: give one folder or NIfTI file"
            )
        series = load_scan(img[0])
        return series.array, _meta(series)


def load_scan(path: Path) -> Series:
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    if path.is_dir():
        return load_series(path)
    if is_nifti(path):
        return load_nifti(path)
    raise InputError(f"{path} is neither a folder nor NIfTI: give the folder that holds the series")


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(_NIFTI_SUFFIXES) and not path.name.startswith(".")


def is_dicom_file(path: Path) -> bool:
    """By content, whatever its name; by name where the content is gone (an empty `17.dcm` is a lost slice)."""
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    return path.suffix.lower() == ".dcm" or is_dicom(path)


def load_series(folder: Path) -> Series:
    """The one CT series in this folder."""
    slices, broken = _read_slices(folder)
    _require_one_series(folder, slices)
    _require_mostly_intact(folder, slices, broken)
    _require_ct(folder, slices)
    _require_one_grid(folder, slices)

    normal = _slice_normal(folder, slices[0])
    slices = sorted(slices, key=lambda item: float(item.origin @ normal))
    positions = np.array([item.origin @ normal for item in slices])
    _require_distinct_positions(folder, slices, positions)

    steps = np.diff([item.origin for item in slices], axis=0)
    spacings = np.linalg.norm(steps, axis=1)
    warnings = [f"{name} holds no complete image and is left out" for name in broken] + _spacing_warnings(spacings)
    for warning in warnings:
        logger.warning(warning)  # without the folder, whose name may be a patient
    mean_step = steps.mean(axis=0) if len(steps) else normal * slices[0].number("SliceThickness", 1.0)
    return Series(
        array=np.stack([_hounsfield(item) for item in slices]).transpose(2, 1, 0),
        affine=_affine(slices[0], mean_step),
        sop_instance_uids=[item.sop_instance_uid for item in slices],
        positions=positions,
        spacings=spacings,
        tilt=_tilt(normal),
        warnings=warnings,
    )


def load_nifti(path: Path) -> Series:
    """A NIfTI volume in HU; its axes are turned so that slices run from inferior to superior here too."""
    try:
        image: Any = nib.load(path)
        if len(image.shape) == 3:
            image = nib.as_closest_canonical(image)
        array = image.get_fdata(dtype=np.float32)
    except Exception as error:  # nibabel, gzip and zlib each raise their own
        raise InputError(
            f"{path} cannot be read as NIfTI: it is damaged or not NIfTI, copy or convert it again"
        ) from error
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"{path} has shape {array.shape}: give one volume with three axes")

    lps = orientation_ras_lps(image.affine)
    normal = _upwards(np.cross(lps[:3, 0], lps[:3, 1]))
    step, origin = lps[:3, 2], lps[:3, 3]
    slices = array.shape[2]
    return Series(
        array=np.fmax(array, np.float32(AIR_HU)),  # fmax, because outside the scanned circle NIfTI may hold NaN
        affine=image.affine,
        sop_instance_uids=[],
        positions=normal @ origin + np.arange(slices) * (normal @ step),
        spacings=np.full(slices - 1, np.linalg.norm(step)),
        tilt=_tilt(normal),
        warnings=[],
    )


def _meta(series: Series) -> dict:
    return {
        MetaKeys.AFFINE: series.affine,
        MetaKeys.ORIGINAL_AFFINE: series.affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.asarray(series.array.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's word for "no channel axis yet"
        "sop_instance_uids": series.sop_instance_uids,
        "positions_mm": series.positions,
        "spacings": series.spacings,
        "tilt_degrees": series.tilt,
        "warnings": series.warnings,
    }


@dataclass(frozen=True)
class _Slice:
    """One DICOM file: its few header fields and its stored pixels."""

    path: Path
    modality: str
    series_instance_uid: str
    sop_instance_uid: str
    header: pydicom.Dataset
    pixels: np.ndarray

    @property
    def origin(self) -> np.ndarray:
        return self.numbers("ImagePositionPatient", 3)

    @property
    def orientation(self) -> np.ndarray:
        """Direction along a row, then direction down a column."""
        return self.numbers("ImageOrientationPatient", 6)

    @property
    def pixel_spacing(self) -> np.ndarray:
        """Millimetres between rows, then between columns."""
        return self.numbers("PixelSpacing", 2)

    def number(self, keyword: str, default: float) -> float:
        return default if self.header.get(keyword) is None else float(self.numbers(keyword, 1)[0])

    def numbers(self, keyword: str, count: int) -> np.ndarray:
        try:
            numbers = np.asarray(self.header[keyword].value, dtype=float).reshape(-1)
        except (KeyError, TypeError, ValueError):
            numbers = np.empty(0)
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise InputError(f"{self.path} has no usable {keyword}: export the series as single-slice CT images")
        return numbers


def _read_slices(folder: Path) -> tuple[list[_Slice], list[str]]:
    """The slices in this folder, and the names of the files that hold no complete one."""
    if not folder.exists():
        raise InputError(f"{folder} does not exist: check the path")
    files = sorted(folder.iterdir())
    if not files:
        raise InputError(f"{folder} is empty: give the folder that holds the series")
    slices: list[_Slice] = []
    broken: list[str] = []
    for file in filter(is_dicom_file, files):
        try:
            slices += _read_slice(file)
        except Exception as error:  # a truncated file fails in as many ways as there are places to cut it
            logger.info("%s: %s", file.name, error)
            broken.append(file.name)
    if not slices and not broken:
        raise InputError(f"{folder} holds no DICOM images: give the folder whose own files are the slices")
    return slices, broken


def _read_slice(path: Path) -> list[_Slice]:
    """The slice in this file, or none where the file is a report."""
    # Research data sets number their slices with UIDs that are none ("ID_0a1b..."): no reason to complain.
    with pydicom.config.disable_value_validation():
        header = pydicom.dcmread(path, specific_tags=_IDENTITY + _GEOMETRY + _HOUNSFIELD + _PIXELS)
        modality, series, sop = (str(header.get(keyword, "")) for keyword in _IDENTITY)
    if modality in _NOT_IMAGES:
        return []
    pixels = header.pixel_array  # raises where there are fewer bytes than rows and columns need
    del header.PixelData
    return [_Slice(path, modality, series, sop, header, pixels)]


def _require_one_series(folder: Path, slices: list[_Slice]) -> None:
    counts = Counter(item.series_instance_uid for item in slices)
    if len(counts) > 1:
        listed = ", ".join(f"{uid} ({count} slices)" for uid, count in sorted(counts.items()))
        raise InputError(f"{folder} holds {len(counts)} series, {listed}: keep one per folder")


def _require_mostly_intact(folder: Path, slices: list[_Slice], broken: list[str]) -> None:
    total = len(slices) + len(broken)
    if len(slices) < MIN_INTACT_SHARE * total:
        raise InputError(
            f"{folder} holds only {len(slices)} complete images in {total} files (not {broken[0]}): "
            "copy the series again, or store it uncompressed if its pixels are compressed"
        )


def _require_ct(folder: Path, slices: list[_Slice]) -> None:
    others = sorted({item.modality for item in slices} - {"CT"})
    if others:
        raise InputError(f"{folder} has Modality {others[0] or 'missing'}: give a CT series")


def _require_one_grid(folder: Path, slices: list[_Slice]) -> None:
    """Slices that stack: single grey images of one size, one direction and one pixel spacing."""
    first = slices[0]
    for item in slices:
        if item.pixels.ndim != 2:
            raise InputError(f"{item.path} is multi-frame or in colour: export the series as single-slice CT images")
        if item.pixels.shape != first.pixels.shape:
            raise InputError(
                f"{folder} mixes Rows x Columns {_size(first)} ({first.path.name}) and {_size(item)} "
                f"({item.path.name}): keep the slices of one size"
            )
        for what in ("orientation", "pixel_spacing"):
            if not np.allclose(getattr(item, what), getattr(first, what), atol=1e-3):
                raise InputError(
                    f"{folder} mixes slices of different {what} ({first.path.name}, {item.path.name}): "
                    "keep one stack, without its localizers"
                )


def _size(item: _Slice) -> str:
    rows, columns = item.pixels.shape
    return f"{rows} x {columns}"


def _slice_normal(folder: Path, item: _Slice) -> np.ndarray:
    normal = _upwards(np.cross(item.orientation[:3], item.orientation[3:]))
    if not _tilt(normal) < MAX_TILT_DEGREES:  # "not <", because a degenerate orientation gives NaN
        raise InputError(
            f"{folder} is not axial (its slices lie {_tilt(normal):.0f} degrees off): give an axial series"
        )
    return normal


def _require_distinct_positions(folder: Path, slices: list[_Slice], positions: np.ndarray) -> None:
    same = np.flatnonzero(np.diff(positions) < SAME_POSITION_MM)
    if len(same):
        one, other = slices[same[0]].path.name, slices[same[0] + 1].path.name
        raise InputError(f"{folder} has two slices at one position ({one}, {other}): keep one slice per position")


def _spacing_warnings(spacings: np.ndarray) -> list[str]:
    if len(spacings) == 0 or spacings.max() <= MAX_EVEN_SPACING_RATIO * spacings.min():
        return []
    return [f"the slices are unevenly spaced, {spacings.min():.2f} to {spacings.max():.2f} mm"]


def _hounsfield(item: _Slice) -> np.ndarray:
    """float32 [rows, columns], padding as air."""
    hounsfield = item.pixels.astype(np.float32)
    hounsfield *= item.number("RescaleSlope", 1.0)
    hounsfield += item.number("RescaleIntercept", 0.0)
    padding = item.header.get("PixelPaddingValue")
    if padding is not None:
        # Unsigned 63536 in the header is the same padding as signed -2000 in the pixels.
        hounsfield[item.pixels == np.asarray(padding).astype(item.pixels.dtype)] = AIR_HU
    return np.maximum(hounsfield, np.float32(AIR_HU), out=hounsfield)


def _affine(first: _Slice, step: np.ndarray) -> np.ndarray:
    row_spacing, column_spacing = first.pixel_spacing
    lps = np.eye(4)
    lps[:3, 0] = first.orientation[:3] * column_spacing
    lps[:3, 1] = first.orientation[3:] * row_spacing
    lps[:3, 2] = step
    lps[:3, 3] = first.origin
    return orientation_ras_lps(lps)


def _upwards(normal: np.ndarray) -> np.ndarray:
    """Unit length and towards the head, so that positions grow from inferior to superior."""
    return normal / np.linalg.norm(normal) * (-1.0 if normal[2] < 0 else 1.0)


def _tilt(normal: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(normal[2], -1.0, 1.0))))
