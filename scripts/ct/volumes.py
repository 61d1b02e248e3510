# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""One scan as a volume in Hounsfield units, and the files that hold such a volume: NIfTI and NRRD."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
from monai.data.utils import orientation_ras_lps

from scripts.core.errors import InputError
from scripts.ct.dicom.hounsfield import AIR_HU
from scripts.ct.dicom.series import tilt_degrees, upwards
from scripts.ct.dicom.tags import quietly

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd")
_SPACES = {  # NRRD's names for where its coordinates grow to, and their signs in RAS
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "ras": (1, 1, 1),
    "las": (-1, 1, 1),
    "lps": (-1, -1, 1),
}


@dataclass(frozen=True)
class Series:
    """One scan, its slices from inferior to superior."""

    array: np.ndarray  # float32 [columns, rows, slices] in HU
    affine: np.ndarray  # (4, 4) voxel -> RAS millimetres, sheared where the gantry was tilted
    positions: np.ndarray  # (slices,) millimetres along the slice normal
    spacings: np.ndarray  # (slices - 1,) millimetres from a slice's origin to the next one's
    tilt: float  # degrees between the slice normal and the patient's long axis
    stored_affine: np.ndarray  # before its axes were turned
    stored_shape: tuple[int, ...]
    sop_instance_uids: list[str] = field(default_factory=list)  # of each slice; this and the next two in DICOM alone
    frames: list[int | None] = field(default_factory=list)  # number within a multi-frame file
    files: list[str] = field(default_factory=list)  # as `open_image` takes them
    warnings: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)  # what else is there, and why it is not read


def is_volume(path: Path) -> bool:
    return path.name.lower().endswith(VOLUME_SUFFIXES) and not path.name.startswith(".")


def load_volume(path: Path) -> Series:
    """A NIfTI or NRRD file in HU; its axes are turned so that slices run from inferior to superior here too."""
    kind, read = ("NRRD", _read_nrrd) if path.name.lower().endswith(".nrrd") else ("NIfTI", _read_nifti)
    try:
        with quietly("nibabel.global"):
            array, affine = read(path)
    except InputError:
        raise
    except Exception as error:  # nibabel, pynrrd, gzip and zlib each raise their own
        raise InputError(
            f"{path} cannot be read as {kind}: it is damaged or not {kind}, copy or convert it again"
        ) from error
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"{path} has shape {array.shape}: give one volume with three axes")
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6):
        raise InputError(f"{path} does not say where its voxels lie: convert it again with its orientation")

    stored_shape = array.shape
    image: Any = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    array = np.asarray(image.dataobj)
    lps = orientation_ras_lps(image.affine)
    normal = upwards(np.cross(lps[:3, 0], lps[:3, 1]))
    step, origin = lps[:3, 2], lps[:3, 3]
    slices = array.shape[2]
    return Series(
        # Outside the scanned circle a volume may hold NaN.
        array=np.maximum(np.where(np.isfinite(array), array, np.float32(AIR_HU)), np.float32(AIR_HU)),
        affine=image.affine,
        positions=normal @ origin + np.arange(slices) * (normal @ step),
        spacings=np.full(slices - 1, np.linalg.norm(step)),
        tilt=tilt_degrees(normal),
        stored_affine=affine,
        stored_shape=stored_shape,
    )


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image: Any = nib.load(path)
    return image.get_fdata(dtype=np.float32), image.affine


def _read_nrrd(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as stream:
        header = nrrd.read_header(stream)
        if {"data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"} & set(header):
            raise InputError(f"{path} keeps its voxels elsewhere: save it as one plain .nrrd file")
        signs = _SPACES.get(str(header.get("space", "")).lower())
        if signs is None or not {"space directions", "space origin"} <= set(header):
            raise InputError(f"{path} does not say where its voxels lie: convert it again with its orientation")
        array = nrrd.read_data(header, stream).astype(np.float32)
    affine = np.eye(4)
    if array.ndim == 3:
        affine[:3, :3] = np.array(header["space directions"]).T
        affine[:3, 3] = header["space origin"]
    return array, np.diag([*signs, 1.0]) @ affine
