# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""torchmil: `features_<encoder>/<bag>`, .npy or .h5 without `coords`, beside `coords/<bag>` of either kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.core.errors import InputError
from scripts.wsi.features.base import (
    Head,
    Stored,
    attributes_of,
    checked_dataset,
    hdf5_rows,
    mapped_rows,
    one_line_damage,
    opened_hdf5,
)


class Torchmil:
    """An array of features in one folder, and one of coords in another."""

    name = "torchmil"

    def reads(self, head: Head) -> bool:
        return head.kind == "npy" or (head.kind == "hdf5" and "features" in head.datasets - {"coords"} == head.datasets)

    def read(self, head: Head) -> Stored:
        if head.kind == "hdf5":
            features = head.dataset("features")
            shape = features.shape[1:] if features.ndim == 3 and features.shape[0] == 1 else features.shape
            attributes = {**attributes_of(features), **head.attributes}
            rows = hdf5_rows(head.path, features)
            return Stored(shape, features.dtype, rows, _coords_of_bag(head.path), attributes)
        array = _array(head.path)
        coords = _coords_of_bag(head.path)
        if array.ndim == 2 and array.flags.c_contiguous and array.size:
            rows = mapped_rows(head.path, array.dtype, array.offset, array.shape[1])
        else:
            rows = lambda start, stop: np.array(array[start:stop])  # noqa: E731
        return Stored(array.shape, array.dtype, rows, coords)


def places_of_coords(path: Path) -> list[Path]:
    """Return where the coords may lie: beside features/features_<encoder>, or a folder less deep."""
    names = dict.fromkeys([path.name, f"{path.stem}.h5", f"{path.stem}.npy"])
    return [above / "coords" / name for above in list(path.parents)[1:3] for name in names]


def _coords_of_bag(path: Path) -> np.ndarray:
    places = places_of_coords(path)
    beside = next((place for place in places if place.is_file()), None)
    if beside is None:
        raise InputError(
            f"{path} holds no `coords`, and there is no {' or '.join(map(str, places))}; "
            "put the coords of its patches there"
        )
    if beside.suffix.lower() == ".npy":
        return np.array(_array(beside))
    with opened_hdf5(beside) as file, one_line_damage(beside):
        coords: np.ndarray = checked_dataset(beside, file, next(iter(file)) if len(file) == 1 else "coords")[()]
        return coords


def _array(path: Path) -> np.memmap:
    with one_line_damage(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise InputError(f"{path} is not one array; save it with numpy.save")
        return array
