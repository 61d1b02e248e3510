# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a head CT as it lies on disk (DICOM, NIfTI, NRRD or MetaImage) into one volume in Hounsfield units."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import ImageReader, ITKReader
from monai.data.utils import orientation_ras_lps
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from scripts.core.errors import InputError
from scripts.ct.dicom.files import folder_of
from scripts.ct.dicom.headers import INCOMPLETE, LEFT_OUT, Header, Rejected, read_headers
from scripts.ct.dicom.hounsfield import AIR_HU, MAX_VOXELS, read_slices
from scripts.ct.dicom.series import (
    Choice,
    by_study,
    choose_series,
    positions_mm,
    slice_normal,
    spacings_mm,
    tilt_degrees,
    upwards,
)
from scripts.ct.dicom.tags import quietly

LOST_AT_MOST = 10  # one file in so many, so that a broken copy is not read as a short scan
_ITK_FORMATS = {".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage"}  # others lack orientation
VOLUME_SUFFIXES = (".nii", ".nii.gz", *_ITK_FORMATS)
# What a bag's entries are made of, beside MONAI's own metadata.
SCAN_META = ("sop_instance_uids", "frames", "files", "positions_mm", "spacings", "tilt_degrees", "warnings", "skipped")
# Lines of a header that state where the voxels lie; ITK takes the identity where they are missing.
_PLACE = {
    "NRRD": (
        rb"^space: *(right|left)-(anterior|posterior)-superior\s*$|^space: *(RAS|LAS|LPS)\s*$",
        rb"^space directions: *(\([^n()]+\)\s*){3}$",
        rb"^space origin: *\(",
    ),
    "MetaImage": (
        rb"^(TransformMatrix|Rotation|Orientation) *=",
        rb"^(Offset|Position|Origin) *=",
        rb"^Element(Spacing|Size) *=",
    ),
}
_NO_PLACE = "does not say where its voxels lie: convert it again with its orientation"


@dataclass(frozen=True)
class Series:
    """One scan, its slices from inferior to superior."""

    array: np.ndarray  # float32 [columns, rows, slices] in HU
    affine: np.ndarray  # (4, 4) voxel -> RAS millimetres, sheared where the gantry was tilted
    positions_mm: np.ndarray  # (slices,) millimetres along the slice normal
    spacings: np.ndarray  # (slices - 1,) millimetres from a slice's origin to the next one's
    tilt_degrees: float  # between the slice normal and the patient's long axis
    stored_affine: np.ndarray  # before its axes were turned
    stored_shape: tuple[int, ...]
    sop_instance_uids: list[str] = field(default_factory=list)  # of each slice; this and the next two in DICOM alone
    frames: list[int | None] = field(default_factory=list)  # number within a multi-frame file
    files: list[str] = field(default_factory=list)  # as `open_image` takes them
    warnings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # what else is there, and why it is not read

    def meta(self) -> dict[str, Any]:
        """Return the metadata as MONAI's readers give it, and what `ScanBagd` makes a bag's entries of."""
        return {
            MetaKeys.AFFINE: self.affine,
            MetaKeys.ORIGINAL_AFFINE: self.stored_affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(self.stored_shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's word for "no channel axis yet"
            **{name: getattr(self, name) for name in SCAN_META},
        }


class SeriesReader(ImageReader):
    """A reader, for MONAI's `LoadImaged`, of a scan in HU, its slices from inferior to superior.

    The scan is DICOM (a folder, a zip, a list of files, one multi-frame file) or a file in NIfTI, NRRD or MetaImage.

    Args:
        series: SeriesInstanceUID or SeriesNumber of the series to read, instead of the one that suits best.
        most_slices: refuse a scan of more, before its pixels are read; the slots of a network that has them.
    """

    most_slices: int | None = None  # a class's, as SliceWindowsd.keep_meta

    def __init__(self, series: str | int | None = None, most_slices: int | None = None) -> None:
        self.series = None if series is None else str(series)
        if most_slices is not None:
            self.most_slices = most_slices

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[Path, ...]:
        # LoadImage turns whatever read raises into a wall of text, and lets through what get_data raises.
        return tuple(Path(path) for path in ensure_tuple(data))

    def get_data(self, img: tuple[Path, ...]) -> tuple[np.ndarray, dict]:
        series = load_scan(*img, series=self.series, most_slices=self.most_slices)
        return series.array, series.meta()


def load_scan(*paths: Path, series: str | None = None, most_slices: int | None = None) -> Series:
    """Read the scan in a volume, a folder, a zip, or DICOM files; `series` and `most_slices` as in `SeriesReader`."""
    if len(paths) > 1 and any(map(is_volume, paths)):
        raise InputError(f"{paths[0]} and {len(paths) - 1} more paths given as one image: give one volume")
    require_utf8(*paths)
    if is_volume(paths[0]) and paths[0].is_file():
        return load_volume(paths[0], most_slices)
    return load_series(*paths, series=series, most_slices=most_slices)


def require_utf8(*paths: Path) -> None:
    """Refuse names in other bytes, as ITK and MLflow take none."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{path} has a name that is not in UTF-8: rename it") from error


def _require_at_most(most: int | None, slices: int, where: str) -> None:
    if most is not None and slices > most:
        advice = "give a series or an export of thicker slices, or weights without slots"
        raise InputError(f"{where} has {slices} slices, and the network of these weights {most} slots: {advice}")


def load_series(*paths: Path, series: str | None = None, most_slices: int | None = None) -> Series:
    """Read the head CT among the DICOM files in a folder, in a zip, or given one by one."""
    where = f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])
    headers, rejected = read_headers(paths)
    if not headers and not rejected:
        what = "no DICOM images" if paths[0].is_dir() else "no DICOM, NIfTI, NRRD or MetaImage"
        raise InputError(f"{where} holds {what}: give a scan, or the folder that holds one")
    choice = choose_scan(headers, rejected, series, where)
    _require_at_most(most_slices, len(choice.headers), where)
    volume, lost, repaired = read_slices(choice.headers, len(choice.headers) // LOST_AT_MOST, where)
    undecoded = {choice.headers[index].file.name: INCOMPLETE for index in lost}
    _require_mostly_intact(where, len(choice.headers), len(lost), undecoded)
    if lost:
        volume = np.delete(volume, lost, axis=0)
        choice = replace(choice, headers=[each for k, each in enumerate(choice.headers) if k not in set(lost)])
    slices = choice.headers
    affine = _affine_of(slices)
    left_out = {file.name: reason for file, reason in rejected} | undecoded
    return Series(
        array=volume.transpose(2, 1, 0),
        affine=affine,
        positions_mm=positions_mm(slices),
        spacings=spacings_mm(slices),
        tilt_degrees=tilt_degrees(slice_normal(slices[0])),
        stored_affine=affine,
        stored_shape=volume.shape[::-1],
        sop_instance_uids=[header.sop for header in slices],
        frames=[header.frame for header in slices],
        files=[header.file.relative_to(folder_of(paths[0])) for header in slices],
        warnings=[f"{name} {reason} {LEFT_OUT}" for name, reason in left_out.items()] + choice.warnings + repaired,
        skipped=choice.skipped,
    )


def choose_scan(headers: Sequence[Header], rejected: Sequence[Rejected], series: str | None, where: str) -> Choice:
    """Return the slices to read of a study, of whose files few hold no image."""
    files = len({header.file for header in headers}) + len(rejected)
    _require_mostly_intact(where, files, len(rejected), {file.name: reason for file, reason in rejected})
    if (studies := len(by_study(headers))) > 1:
        raise InputError(f"{where} holds {studies} studies: give each a folder")
    return choose_series(headers, series, where)


def _require_mostly_intact(where: str, total: int, lost: int, reasons: dict[str, str]) -> None:
    if lost > total // LOST_AT_MOST:
        name, reason = next(iter(reasons.items()))
        what = "holds no image that can be read" if lost == total else f"has lost {lost} or more of {total} images"
        raise InputError(f"{where} {what} ({name} {reason}): copy the scan again, or store it uncompressed")


def _affine_of(slices: Sequence[Header]) -> np.ndarray:
    """Return (4, 4), voxel → RAS, of slices in order; their mean step is its third column."""
    first, last = np.array(slices[0].position), np.array(slices[-1].position)
    step = slice_normal(slices[0]) * (slices[0].thickness or 1.0)
    lps = np.eye(4)
    lps[:3, :2] = np.array(slices[0].orientation).reshape(2, 3).T * np.flip(np.array(slices[0].pixel_spacing))
    lps[:3, 2] = (last - first) / (len(slices) - 1) if len(slices) > 1 else step
    lps[:3, 3] = first
    return orientation_ras_lps(lps)


def is_volume(path: Path) -> bool:
    """Tell by its name whether a file is a volume; hidden files are none."""
    return path.name.lower().endswith(VOLUME_SUFFIXES) and not path.name.startswith(".")


def load_volume(path: Path, most_slices: int | None = None) -> Series:
    """Read a NIfTI, NRRD or MetaImage file in HU; its axes are turned so that slices run from inferior to superior.

    `most_slices` is as in `SeriesReader`.
    """
    with _readable(path):
        opened, shape = _opened(path)
        if len(shape) != 3 or 0 in shape:
            raise InputError(f"{path} has shape {shape}: give one volume with three axes")
        _require_at_most(most_slices, shape[_axis_of_slices(path, opened)], str(path))
        if _format_of(path) == "NIfTI":
            array, affine = opened.get_fdata(dtype=np.float32), opened.affine
        else:
            array, affine = _read_with_itk(path, opened, shape)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6):
        raise InputError(f"{path} {_NO_PLACE}")
    image: Any = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    turned = np.asarray(image.dataobj)
    return Series(
        # Outside the scanned circle a volume may hold NaN.
        array=np.maximum(np.where(np.isfinite(turned), turned, np.float32(AIR_HU)), np.float32(AIR_HU)),
        affine=image.affine,
        **places(image.affine, turned.shape[2]),
        stored_affine=affine,
        stored_shape=array.shape,
    )


def places(affine: np.ndarray, slices: int) -> dict[str, Any]:
    """Return where so many slices lie, as a `Series` has it, by an affine, voxel → RAS mm, of which they are axis 3."""
    lps = orientation_ras_lps(affine)
    normal = upwards(np.cross(lps[:3, 0], lps[:3, 1]))
    origins = lps[:3, 3] + np.arange(slices)[:, None] * lps[:3, 2]
    return {
        "positions_mm": origins @ normal,
        "spacings": np.linalg.norm(np.diff(origins, axis=0), axis=1),
        "tilt_degrees": tilt_degrees(normal),
    }


def pixel_mm(affine: np.ndarray) -> tuple[float, float]:
    """Return the sides of a pixel by an affine of which slices are axis 3."""
    x, y = np.linalg.norm(affine[:3, :2], axis=0).tolist()
    return x, y


def volume_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of a volume by its header alone; a pixel of several values counts as a fourth axis."""
    with _readable(path):
        return _opened(path)[1]


def _format_of(path: Path) -> str:
    return _ITK_FORMATS.get(path.suffix.lower(), "NIfTI")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever nibabel, ITK, gzip and zlib raise or print into an error of one line."""
    name = _format_of(path)
    try:
        with quietly("nibabel.global"), _without_stderr() if name == "MetaImage" else nullcontext():
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read as {name}: copy or convert it again") from error


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Hide what C++ code prints: MetaIO comments on a damaged file there, besides raising."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _axis_of_slices(path: Path, opened: Any) -> int:
    """Return along which stored axis the slices of a volume of three lie, by its header alone."""
    axes = np.eye(4)
    if _format_of(path) == "NIfTI":
        axes = opened.affine
    else:  # in LPS, where the same axis runs upwards
        axes[:3, :3] = np.transpose([opened.GetDirection(axis) for axis in range(3)])
    if not np.isfinite(axes).all():
        return 2  # whichever: it is refused for that
    return int(np.argmax(nib.io_orientation(axes)[:, 0]))


def _read_with_itk(path: Path, opened: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels as float32 and the affine, voxel → RAS, of an NRRD or MetaImage file."""
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise InputError(f"{path} has shape {shape}, too many voxels to hold in memory: give one head")
    with path.open("rb") as stream:  # whose text at the start is a small part of so many bytes
        header = re.split(rb"\r?\n\r?\n|(?<=\n)ElementDataFile", stream.read(65536), maxsplit=1)[0]
    if not all(re.search(line, header, re.MULTILINE | re.IGNORECASE) for line in _PLACE[_format_of(path)]):
        raise InputError(f"{path} {_NO_PLACE}")
    import itk

    reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=str(path), ImageIO=opened)
    reader.Update()
    array, meta = ITKReader().get_data(reader.GetOutput())
    return array, meta[MetaKeys.AFFINE]


def _opened(path: Path) -> tuple[Any, tuple[int, ...]]:
    """Return nibabel's image or ITK's reader of the format, of which the header alone is read, and the shape by it."""
    if _format_of(path) == "NIfTI":
        image: Any = nib.load(path)
        return image, tuple(image.shape)
    try:
        import itk
    except ImportError as error:
        raise InputError(f"{path} is read by ITK, which is not installed: pip install itk-io") from error
    # By the suffix, as ITK's own search knows it in small letters alone.
    opened = itk.NrrdImageIO.New() if _format_of(path) == "NRRD" else itk.MetaImageIO.New()
    opened.SetFileName(str(path))
    opened.ReadImageInformation()
    shape = [int(opened.GetDimensions(axis)) for axis in range(opened.GetNumberOfDimensions())]
    values = int(opened.GetNumberOfComponents())  # of a pixel, such as 3 in colour, also in a flat picture
    return opened, tuple(shape if values == 1 else [values, *shape, *[1] * (3 - len(shape))])
