# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The flagged slices as an image over the scan, for viewers: 3D Slicer, ITK-SNAP and the like."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
from monai.data import MetaTensor
from monai.data.utils import orientation_ras_lps
from monai.transforms import SaveImaged

from scripts.core.errors import InputError
from scripts.core.files import write_whole
from scripts.core.record import BagResult

FAST = 1  # of gzip's nine levels: whole slices of one value shrink well at any


class SaveLabelMapd(SaveImaged):
    """Writes `output_dir/<bag_id>/flagged.nrrd`: 1 in the flagged slices, in the axes, shape and affine of the input.

    A flagged slice is marked from edge to edge. The network speaks of slices, and whatever follows the anatomy would
    look like the outline of a bleed. Of a negative scan nothing is marked. This is a SaveImaged, because MONAI Label
    takes those out of the postprocessing.

    Args:
        output_dir: folder of the results.
        extension: .nrrd, .nii.gz or .nii. Under a tilted gantry the slices are sheared, and NRRD says so to every
            viewer. In NIfTI the sform says so; what is built on ITK (3D Slicer, ITK-SNAP) reads the qform instead,
            which holds no shear, and shows the slices centimetres off.
        volume_key: the scan, [1, X, Y, N] in LPS axes, with its meta; without it nothing is written.
    """

    def __init__(self, output_dir: str, extension: str = ".nrrd", volume_key: str = "volume") -> None:
        super().__init__(volume_key, output_dir=output_dir)
        if extension not in _ENCODERS:
            raise InputError(f"the label map's extension {extension} is not known: give one of {', '.join(_ENCODERS)}")
        self.output_dir = Path(output_dir)
        self.extension = extension
        self.volume_key = volume_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if self.volume_key in data:
            result: BagResult = data["result"]
            marks, affine = label_map(result.flagged, data[self.volume_key])
            path = self.output_dir / result.bag_id / f"flagged{self.extension}"
            write_whole(path, _ENCODERS[self.extension](marks, affine))
        return dict(data)


def label_map(flagged: np.ndarray, volume: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [X, Y, Z] in the axes that the volume had when it was read, and its affine, voxel -> RAS millimetres.

    Args:
        flagged: (N,) which of its slices to mark.
        volume: [1, X, Y, N], perhaps turned since.
    """
    if not isinstance(volume, MetaTensor) or "original_affine" not in volume.meta:
        raise InputError("the volume has lost its meta before SaveLabelMapd: copy it right after Orientationd")
    marks = np.zeros(volume.shape[1:], dtype=np.uint8, order="F")
    marks[..., flagged] = 1
    affine, as_read = (np.asarray(of, dtype=float) for of in (volume.affine, volume.meta["original_affine"]))
    # Voxel to voxel, so that not even a shear hides which axis is which.
    turn = nib.io_orientation(np.linalg.inv(as_read) @ affine)
    return nib.apply_orientation(marks, turn), affine @ nib.orientations.inv_ornt_aff(turn, marks.shape)


def _nifti(marks: np.ndarray, affine: np.ndarray) -> bytes:
    image = nib.Nifti1Image(marks, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")  # the nearest without shear: without any, ITK refuses a sheared file
    return image.to_bytes()


def _compressed_nifti(marks: np.ndarray, affine: np.ndarray) -> bytes:
    return gzip.compress(_nifti(marks, affine), FAST, mtime=0)


def _nrrd(marks: np.ndarray, affine: np.ndarray) -> bytes:
    lps = orientation_ras_lps(affine)
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
    }
    content = io.BytesIO()
    nrrd.write(content, marks, header, compression_level=FAST)
    return re.sub(rb"\n# on .*", b"", content.getvalue(), count=1)  # the hour, or a second run would differ


_ENCODERS = {".nrrd": _nrrd, ".nii.gz": _compressed_nifti, ".nii": _nifti}
