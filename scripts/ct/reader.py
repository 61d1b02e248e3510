# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A head CT as it lies on disk (DICOM in a folder, a zip or a list, NIfTI, NRRD) to one volume in Hounsfield units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import orientation_ras_lps
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from scripts.core.errors import InputError
from scripts.ct.dicom.files import folder_of
from scripts.ct.dicom.headers import INCOMPLETE, Header, read_headers
from scripts.ct.dicom.hounsfield import read_slices
from scripts.ct.dicom.series import by_study, choose_series, positions_mm, slice_normal, spacings_mm, tilt_degrees
from scripts.ct.volumes import Series, is_volume, load_volume

LOST_AT_MOST = 10  # one file in so many, so that a broken copy is not read as a short scan


class SeriesReader(ImageReader):
    """`LoadImaged(keys="image", reader=SeriesReader())`: a scan in HU, its slices from inferior to superior.

    The scan is DICOM, as a folder, a zip, a list of files or one multi-frame file; or it is a NIfTI or NRRD file.

    Args:
        series: SeriesInstanceUID or SeriesNumber of the series to read, instead of the one that suits best.
    """

    def __init__(self, series: str | int | None = None) -> None:
        self.series = None if series is None else str(series)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[Path, ...]:
        # LoadImage turns whatever read raises into a wall of text, and lets through what get_data raises.
        return tuple(Path(path) for path in ensure_tuple(data))

    def get_data(self, img: tuple[Path, ...]) -> tuple[np.ndarray, dict]:
        series = load_scan(*img, series=self.series)
        return series.array, _meta(series)


def load_scan(*paths: Path, series: str | None = None) -> Series:
    if len(paths) > 1 and any(map(is_volume, paths)):
        raise InputError(f"{paths[0]} and {len(paths) - 1} more paths given as one image: give one volume")
    if is_volume(paths[0]) and paths[0].is_file():
        return load_volume(paths[0])
    return load_series(*paths, series=series)


def load_series(*paths: Path, series: str | None = None) -> Series:
    """The head CT among the DICOM files in a folder, in a zip, or given one by one."""
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    headers, rejected = read_headers(paths)
    if not headers and not rejected:
        raise InputError(f"{where} {_nothing_there(paths[0])}")
    unread = {file.name: reason for file, reason in rejected}
    _require_mostly_intact(where, len({header.file for header in headers}) + len(rejected), len(rejected), unread)
    studies = len(by_study(headers))
    if studies > 1:
        raise InputError(f"{where} holds {studies} studies: give each a folder")

    choice = choose_series(headers, series, where)
    volume, lost, mended = read_slices(choice.headers, len(choice.headers) // LOST_AT_MOST, where)
    undecoded = {choice.headers[index].file.name: INCOMPLETE for index in lost}
    _require_mostly_intact(where, len(choice.headers), len(lost), undecoded)
    if lost:
        volume = np.delete(volume, lost, axis=0)
        choice = replace(choice, headers=[each for k, each in enumerate(choice.headers) if k not in set(lost)])

    slices = choice.headers
    normal = slice_normal(slices[0])
    array, affine = volume.transpose(2, 1, 0), _affine(slices, normal)
    left_out = [f"{name} {reason} and is left out" for name, reason in {**unread, **undecoded}.items()]
    return Series(
        array=array,
        affine=affine,
        positions=positions_mm(slices),
        spacings=spacings_mm(slices),
        tilt=tilt_degrees(normal),
        stored_affine=affine,
        stored_shape=array.shape,
        sop_instance_uids=[header.sop for header in slices],
        frames=[header.frame for header in slices],
        files=[header.file.relative_to(folder_of(paths[0])) for header in slices],
        warnings=left_out + choice.warnings + mended,
        set_aside=choice.set_aside,
    )


def _nothing_there(path: Path) -> str:
    if not path.is_dir():
        return "holds no DICOM, NIfTI or NRRD image: give a scan, or the folder that holds one"
    if not any(path.iterdir()):
        return "is empty: give the folder that holds the scan"
    return "holds no DICOM images: give the folder that holds the scan"


def _require_mostly_intact(where: str, total: int, lost: int, reasons: dict[str, str]) -> None:
    if lost > total // LOST_AT_MOST:
        name, reason = next(iter(reasons.items()))
        how_many = "holds no image that can be read" if lost == total else f"has lost {lost} or more of {total} images"
        raise InputError(
            f"{where} {how_many} ({name} {reason}): "
            "copy the scan again, or store it uncompressed if its pixels are compressed"
        )


def _affine(slices: Sequence[Header], normal: np.ndarray) -> np.ndarray:
    first = slices[0]
    origins = np.array([header.position for header in slices])
    row_spacing, column_spacing = np.array(first.pixel_spacing)
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.orientation)[:3] * column_spacing
    lps[:3, 1] = np.array(first.orientation)[3:] * row_spacing
    lps[:3, 2] = np.diff(origins, axis=0).mean(axis=0) if len(slices) > 1 else normal * (first.thickness or 1.0)
    lps[:3, 3] = origins[0]
    return orientation_ras_lps(lps)


def _meta(series: Series) -> dict:
    return {
        MetaKeys.AFFINE: series.affine,
        MetaKeys.ORIGINAL_AFFINE: series.stored_affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.asarray(series.stored_shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's word for "no channel axis yet"
        "sop_instance_uids": series.sop_instance_uids,
        "frames": series.frames,
        "files": series.files,
        "positions_mm": series.positions,
        "spacings": series.spacings,
        "tilt_degrees": series.tilt,
        "warnings": series.warnings,
        "set_aside": series.set_aside,
    }
