# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Owkin: `<slide>/features.npy`, whose first columns are the level of DeepZoom and the column and row of each tile."""

from pathlib import Path

import numpy as np

from scripts.core.bags import NAMED_BY_ITS_FOLDER
from scripts.core.errors import InputError
from scripts.wsi.features.arrays import npy_array
from scripts.wsi.features.base import Head, Stored

BEFORE = 3  # columns before the features
ROWS_AT_ONCE = 4096  # that are read at once


class Owkin:
    """Tiles are counted, so that they are one apart; how large one is on the slide is not stated."""

    name = "Owkin"

    def reads(self, head: Head) -> bool:
        return head.kind == "npy" and folder_of_slide(head.path) is not None

    def read(self, head: Head) -> Stored:
        whole = npy_array(head.path)
        if len(whole.shape) != 2 or whole.shape[1] <= BEFORE:
            raise InputError(f"{head.path} of {whole.shape} has no columns level, x, y before features; give Owkin's")
        starts = range(0, whole.shape[0], ROWS_AT_ONCE)
        parts = [whole.rows(start, min(start + ROWS_AT_ONCE, whole.shape[0]))[:, :BEFORE] for start in starts]
        places = np.concatenate(parts or [np.zeros((0, BEFORE))])
        if len(np.unique(places[:, 0])) > 1 or (places != np.rint(places)).any():
            raise InputError(f"the first columns of {head.path} are not one level, and x, y of tiles; give Owkin's")
        features = whole._replace(
            shape=(whole.shape[0], whole.shape[1] - BEFORE),
            rows=lambda start, stop: whole.rows(start, stop)[:, BEFORE:],
        )
        coords = places[:, 1:].astype(np.int64)
        return Stored(features, coords, pitch=(1.0, "counted"), tile=1.0, unit="tiles")


def folder_of_slide(path: Path) -> str | None:
    """Return the name of the slide that a file is of, if Owkin's way names it after the folder.

    Where coords lie beside, its first columns are none.
    """
    is_owkin = path.name == NAMED_BY_ITS_FOLDER and not path.with_name("coords.npy").exists()
    return path.absolute().parent.name if is_owkin else None
