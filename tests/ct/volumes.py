# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes: NRRD and MetaImage by the letter of their formats, without ITK; what readers and writers are held to."""

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NRRD_TYPES = {"i2": "short", "u2": "ushort", "f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}
META_TYPES = {"i2": "SHORT", "u2": "USHORT", "f4": "FLOAT", "f8": "DOUBLE", "u1": "UCHAR", "i4": "INT"}
Lines = Mapping[str, str | None]


def write_nrrd(
    path: Path,
    array: np.ndarray,
    affine: np.ndarray,
    space: str = "right-anterior-superior",
    encoding: str = "raw",
    lines: Lines | None = None,
) -> Path:
    """affine: voxel → `space`; a line of the header given as None is left out."""
    raw = array.tobytes(order="F")
    header: dict[str, Any] = {
        "type": NRRD_TYPES[array.dtype.str[1:]],
        "dimension": array.ndim,
        "sizes": " ".join(map(str, array.shape)),
        "endian": "little",
        "encoding": encoding,
        "space": space,
        "space directions": " ".join(_vector(column) for column in affine[:3, :3].T),
        "space origin": _vector(affine[:3, 3]),
        **(lines or {}),
    }
    head = "".join(f"{key}: {value}\n" for key, value in header.items() if value is not None)
    content = gzip.compress(raw) if encoding == "gzip" else raw
    elsewhere = header.get("data file")
    if elsewhere:
        (path.parent / elsewhere).write_bytes(content)
    path.write_bytes(f"NRRD0005\n{head}\n".encode() + (b"" if elsewhere else content))
    return path


def write_mha(
    path: Path, array: np.ndarray, affine: np.ndarray, zipped: bool = False, lines: Lines | None = None
) -> Path:
    """affine: voxel → LPS; the voxels of an .mhd lie beside it."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    raw = array.tobytes(order="F")
    content = zlib.compress(raw) if zipped else raw
    header: dict[str, Any] = {
        "ObjectType": "Image",
        "NDims": array.ndim,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(zipped),
        "CompressedDataSize": len(content) if zipped else None,
        "TransformMatrix": _numbers((affine[:3, :3] / np.where(spacing, spacing, 1)).T.ravel()),
        "Offset": _numbers(affine[:3, 3]),
        "ElementSpacing": _numbers(spacing),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": f"MET_{META_TYPES[array.dtype.str[1:]]}",
        **(lines or {}),
        "ElementDataFile": f"{path.stem}.raw" if path.suffix == ".mhd" else "LOCAL",
    }
    head = "".join(f"{key} = {value}\n" for key, value in header.items() if value is not None).encode()
    if path.suffix == ".mhd":
        path.with_suffix(".raw").write_bytes(content)
    path.write_bytes(head + (b"" if path.suffix == ".mhd" else content))
    return path


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_volume(path: Path, array: np.ndarray, ras: np.ndarray) -> Path:
    """In the format of its suffix."""
    if path.suffix in (".nii", ".gz"):
        return write_nifti(path, array, ras)
    if path.suffix in (".mha", ".mhd"):
        return write_mha(path, array, LPS_TO_RAS @ ras)
    lines = {"data file": f"{path.stem}.raw"} if path.suffix == ".nhdr" else {}
    return write_nrrd(path, array, LPS_TO_RAS @ ras, "left-posterior-superior", lines=lines)


def parse_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of a compressed file of bytes, and the affine, voxel → RAS, by its header's letter."""
    content = path.read_bytes()
    lps = np.eye(4)
    if path.suffix == ".mha":
        head, data = content.split(b"ElementDataFile = LOCAL\n", 1)
        lines = dict(line.split(" = ") for line in head.decode().splitlines())
        assert (lines["ElementType"], lines["CompressedData"]) == ("MET_UCHAR", "True")
        shape = [int(size) for size in lines["DimSize"].split()]
        lps[:3, :3] = np.array(lines["TransformMatrix"].split(), float).reshape(3, 3).T
        lps[:3, :3] *= np.array(lines["ElementSpacing"].split(), float)
        lps[:3, 3] = np.array(lines["Offset"].split(), float)
        voxels = zlib.decompress(data)
    else:
        head, data = content.split(b"\n\n", 1)
        lines = dict(line.split(": ") for line in head.decode().splitlines() if ": " in line)
        assert (lines["type"], lines["encoding"]) == ("unsigned char", "gzip")
        assert lines["space"] == "left-posterior-superior"
        shape = [int(size) for size in lines["sizes"].split()]
        vectors = [np.array(vector.strip("()").split(","), float) for vector in lines["space directions"].split()]
        lps[:3, :3] = np.transpose(vectors)
        lps[:3, 3] = np.array(lines["space origin"].strip("()").split(","), float)
        voxels = gzip.decompress(data)
    return np.frombuffer(voxels, np.uint8).reshape(shape, order="F"), LPS_TO_RAS @ lps


def _numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in values)


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"
