# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""CLAM: h5 with `features` and `coords`, or a .pt of the features alone; `patches/<id>.h5` tells the pitch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from scripts.core.errors import InputError
from scripts.wsi.features.base import (
    Head,
    Stored,
    attributes_of,
    checked_dataset,
    hdf5_rows,
    one_line_damage,
    opened_hdf5,
    positive,
    tensor,
    tensor_rows,
)


class Clam:
    """Whatever no other format reads."""

    name = "CLAM"

    def reads(self, head: Head) -> bool:
        return head.kind in ("hdf5", "torch")

    def read(self, head: Head) -> Stored:
        return read_torch(head) if head.kind == "torch" else read_hdf5(head)


def read_hdf5(head: Head) -> Stored:
    """Return `features` and `coords`; where the file does not say how its patches were cut, the one beside it does."""
    features, coords = head.dataset("features"), head.dataset("coords")
    attributes = {**attributes_of(features), **head.attributes, **attributes_of(coords)}
    if "patch_size" not in attributes:
        attributes |= attributes_of_patches(head.path)
    leading = features.ndim == 3 and features.shape[0] == 1
    places = coords[()][0] if coords.ndim == 3 and len(coords) == 1 else coords[()]
    shape = features.shape[1:] if leading else features.shape
    return with_pitch(Stored(shape, features.dtype, hdf5_rows(head.path, features), places, attributes))


def read_torch(head: Head) -> Stored:
    """Return the features of a .pt with the coords of the h5 file that has as many patches."""
    path, features = head.path, tensor(head.path)
    beside = [h5_beside(path), *files_of_patches(path)]
    found = [place for place in beside if place.is_file()]
    if not found:
        looked_for = ", ".join(map(str, beside))
        raise InputError(
            f"{path} holds features alone, and there is none of {looked_for}; put one there, or give the h5"
        )
    dtype, rows = tensor_rows(path, features)
    for place in found:
        with opened_hdf5(place) as file, one_line_damage(place):
            coords = checked_dataset(place, file, "coords")
            if features.shape[:1] == coords.shape[:1]:
                attributes = {**attributes_of_patches(path), **attributes_of(coords)}
                return with_pitch(Stored(tuple(features.shape), dtype, rows, coords[()], attributes))
            patches = coords.shape[0] if coords.ndim else 0
    raise InputError(
        f"{path} holds features {tuple(features.shape)} and {found[-1]} the coords of {patches} patches; "
        "extract them again: they are not of one run"
    )


def with_pitch(stored: Stored) -> Stored:
    """Add the pitch and the tile, in level-0 pixels, as far as the attributes of CLAM or TRIDENT say them."""
    attributes = stored.attributes
    size, at_level0 = positive(attributes, "patch_size"), positive(attributes, "patch_size_level0")
    downsample, overlap = positive(attributes, "downsample"), positive(attributes, "overlap") or 0.0
    if at_level0 is not None:
        pitch, tile = at_level0 - overlap * (at_level0 / size if size else 1.0), at_level0
        name = "patch_size_level0 less overlap"
    elif size is not None and downsample is not None:
        pitch, tile, name = downsample * (size - overlap), size * downsample, "patch_size x downsample"
    else:
        return stored
    return Stored(**{**vars(stored), "pitch": (pitch, name) if pitch > 0 else None, "tile": tile})


def h5_beside(path: Path) -> Path:
    """Return the h5 file of the features that a .pt of CLAM holds a second time."""
    return path.parent.parent / "h5_files" / f"{path.stem}.h5"


def files_of_patches(path: Path) -> list[Path]:
    """Return where CLAM and TRIDENT say how the patches of a feature file were cut."""
    names = (f"{path.stem}.h5", f"{path.stem}_patches.h5")
    return [above / "patches" / name for above in list(path.parents)[1:3] for name in names]


def attributes_of_patches(path: Path) -> dict[str, Any]:
    """Return what the file of the patches says; empty where there is none."""
    for place in (place for place in files_of_patches(path) if place.is_file()):
        with opened_hdf5(place) as file, one_line_damage(place):
            if "imgs" in file:
                return _of_stored_images(path, place, file["imgs"])
            return attributes_of(checked_dataset(place, file, "coords"))
    return {}


def _of_stored_images(path: Path, place: Path, images: h5py.Dataset) -> dict[str, Any]:
    """CLAM once stored the patches themselves, and divided the coords by all that they were made smaller by."""
    attributes = attributes_of(images)
    if positive(attributes, "patch_level") or attributes.get("level_dim") != attributes.get("downsampled_level_dim"):
        raise InputError(
            f"the coords of {path} are not at level 0, as {place} is of CLAM's older way; "
            "cut the patches anew with create_patches_fp.py"
        )
    return attributes
