# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The flagged slices as an image over the scan, for viewers: 3D Slicer, ITK-SNAP and the like."""

import gzip
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import ITKWriter, MetaTensor
from monai.data.utils import orientation_ras_lps
from monai.transforms import Transform
from monai.utils import OptionalImportError

from scripts.core.errors import InputError
from scripts.core.files import write_whole
from scripts.core.record import BagResult

EXTENSIONS = (".nrrd", ".mha", ".nii.gz", ".nii")
GZIP_LEVEL = 1  # the fastest: whole slices of one value shrink well at any


class LabelMapd(Transform):
    """Add `pred`: uint8 [1, X, Y, Z] in the input's axes and affine, 1 in the flagged slices, 0 in a negative scan.

    A flagged slice is marked from edge to edge. The network speaks of slices, and whatever follows the anatomy would
    look like the outline of a bleed.

    Args:
        volume_key: the scan, [1, X, Y, N] in LPS axes, with its metadata; without it nothing is added.
    """

    def __init__(self, volume_key: str = "volume") -> None:
        self.volume_key = volume_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if self.volume_key not in data:
            return dict(data)
        result: BagResult = data["bag_result"]
        marks, affine = label_map(result.flagged, data[self.volume_key])
        return {**data, "pred": MetaTensor(np.ascontiguousarray(marks)[None], affine=torch.from_numpy(affine))}


class SaveLabelMapd(Transform):
    """The writer of `output_dir/<bag_id>/flagged.nrrd`, which holds the label map in `pred`.

    Args:
        output_dir: folder of the results.
        extension: .nrrd, .mha, .nii.gz or .nii. Under a tilted gantry the slices are sheared, and NRRD and MetaImage
            hold the shear for every viewer. In NIfTI the sform holds it; what is built on ITK (3D Slicer, ITK-SNAP)
            reads the qform instead, which does not, and shows the slices centimetres off.
    """

    def __init__(self, output_dir: str, extension: str = ".nrrd") -> None:
        if extension not in EXTENSIONS:
            raise InputError(f"the label map's extension {extension} is not known: give one of {', '.join(EXTENSIONS)}")
        self.output_dir = Path(output_dir)
        self.extension = extension

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if "pred" in data:
            marks, affine = data["pred"][0].numpy(), data["pred"].affine.numpy()
            path = self.output_dir / data["bag_result"].bag_id / f"flagged{self.extension}"
            encode = {".nrrd": _as_nrrd, ".mha": _by_itk}.get(self.extension, _as_nifti)
            write_whole(path, encode(marks, affine, self.extension))
        return dict(data)


def label_map(flagged: np.ndarray, volume: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [X, Y, Z] in the axes that the volume had when it was read, and its affine, voxel → RAS mm.

    The volume is [1, X, Y, N], perhaps turned since, of whose slices those that are `flagged`, (N,), are marked.
    """
    if not isinstance(volume, MetaTensor) or "original_affine" not in volume.meta:
        raise InputError("the volume has lost its metadata before LabelMapd: copy it right after Orientationd")
    marks = np.zeros(volume.shape[1:], dtype=np.uint8, order="F")
    marks[..., flagged] = 1
    affine, as_read = (np.asarray(of, dtype=float) for of in (volume.affine, volume.meta["original_affine"]))
    # Voxel to voxel, so that not even a shear hides which axis is which.
    turn = nib.io_orientation(np.linalg.inv(as_read) @ affine)
    return nib.apply_orientation(marks, turn), affine @ nib.orientations.inv_ornt_aff(turn, marks.shape)


def _as_nifti(marks: np.ndarray, affine: np.ndarray, extension: str) -> bytes:
    image = nib.Nifti1Image(marks, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")  # the nearest without shear: without any, ITK refuses a sheared file
    content: bytes = image.to_bytes()
    return gzip.compress(content, GZIP_LEVEL, mtime=0) if extension == ".nii.gz" else content


def _as_nrrd(marks: np.ndarray, affine: np.ndarray, extension: str) -> bytes:
    """Return what ITK writes as well, which takes long to load."""
    *directions, origin = (f"({','.join(map(repr, column.tolist()))})" for column in orientation_ras_lps(affine)[:3].T)
    header = [
        *("NRRD0004", "type: unsigned char", "dimension: 3", "space: left-posterior-superior"),
        *(f"sizes: {' '.join(map(str, marks.shape))}", f"space directions: {' '.join(directions)}"),
        *("kinds: domain domain domain", "encoding: gzip", f"space origin: {origin}"),
    ]
    content = gzip.compress(marks.tobytes(order="F"), GZIP_LEVEL, mtime=0)
    return "\n".join([*header, "", ""]).encode() + content


def _by_itk(marks: np.ndarray, affine: np.ndarray, extension: str) -> bytes:
    try:
        writer = ITKWriter(output_dtype=np.uint8)
    except OptionalImportError as error:
        raise InputError(f"a label map in {extension} is written by ITK: pip install itk-io") from error
    writer.set_data_array(marks, channel_dim=None, squeeze_end_dims=False)  # or a scan of one slice would lose an axis
    writer.affine = affine  # set_metadata takes a volume without channels for a plane, and fails where axes are swapped
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"flagged{extension}")  # ITK knows the format by the suffix
        writer.write(path, compression=True)
        return path.read_bytes()
