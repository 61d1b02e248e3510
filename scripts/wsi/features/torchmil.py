# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""torchmil: `features_<encoder>/<bag>`, .npy or .h5 without `coords`, beside `coords/<bag>` of either kind."""

from pathlib import Path

import numpy as np

from scripts.core.errors import InputError
from scripts.wsi.features.arrays import npy_array, one_line_damage
from scripts.wsi.features.base import Head, Stored, opened_hdf5
from scripts.wsi.features.named import has_names


class Torchmil:
    """An array of features in one folder, and one of coords in another."""

    name = "torchmil"

    def reads(self, head: Head) -> bool:
        return head.kind == "npy" or ("features" in head.hdf5 and not has_names(head))

    def read(self, head: Head) -> Stored:
        path = head.path
        if head.kind == "hdf5":
            return Stored(head.array("features"), _coords_of_bag(path), head.stated("features", "/"))
        return Stored(npy_array(path), _coords_of_bag(path))


def files_of_coords(path: Path) -> list[Path]:
    """Return where the coords may lie: beside features/features_<encoder>, or a folder less deep."""
    names = dict.fromkeys([path.name, f"{path.stem}.h5", f"{path.stem}.npy"])
    return [above / "coords" / name for above in path.parents[1:3] for name in names]


def _coords_of_bag(path: Path) -> np.ndarray:
    found = next((candidate for candidate in files_of_coords(path) if candidate.is_file()), None)
    if found is None:
        wanted = " or ".join(map(str, files_of_coords(path)))
        raise InputError(f"{path} holds no `coords`, and there is no {wanted}; put the coords of its patches there")
    if found.suffix.lower() == ".npy":
        return npy_array(found).whole()
    with opened_hdf5(found) as beside, one_line_damage(found):
        return beside.array(next(iter(beside.hdf5)) if len(beside.hdf5) == 1 else "coords").whole()
