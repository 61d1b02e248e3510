# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""TIAToolbox: `0.features.0.npy` beside `0.position.npy`, or a Zarr store of `features` (`canvas`) and `coordinates`.

Positions are left, top, right and bottom in pixels of the resolution that was asked for, which no file states.
"""

import pickle
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from scripts.core.errors import InputError
from scripts.wsi.features.arrays import UNREADABLE, StoredArray, npy_array
from scripts.wsi.features.base import Head, Stored

NUMBERED = re.compile(r"(.+)\.features\.\d+")
LIST = "file_map.dat"  # of pairs: path of the slide, path of its files without their endings
MOST_BYTES_OF_A_LIST = 2**24
CANVAS = "canvas"  # what features are called where they were not asked for by name
UNIT = "pixels of the resolution asked for"


class TiaToolbox:
    """Of version 1 numbered files, of version 2 a store that is called after its slide."""

    name = "TIAToolbox"

    def reads(self, head: Head) -> bool:
        of_version_1 = head.kind == "npy" and positions_beside(head.path) is not None
        positions = head.arrays.get("coordinates") if head.kind == "zarr" else None
        return of_version_1 or (positions is not None and positions.shape[1:] == (4,))

    def read(self, head: Head) -> Stored:
        beside = positions_beside(head.path)
        if beside is None:
            features = head.array("features" if "features" in head.arrays else CANVAS)
            return _from_positions(head.path, features, head.array("coordinates").whole())
        return _from_positions(head.path, npy_array(head.path), npy_array(beside).whole())


def _from_positions(path: Path, features: StoredArray, positions: np.ndarray) -> Stored:
    if positions.ndim != 2 or positions.shape[1] != 4:
        raise InputError(
            f"the positions of {path} are {positions.shape}, not left, top, right and bottom; extract again"
        )
    tile = float(np.median(positions[:, 2] - positions[:, 0])) if len(positions) else 0.0
    return Stored(features, positions[:, :2], tile=tile if tile > 0 else None, unit=UNIT)


def positions_beside(path: Path) -> Path | None:
    """Return the positions of the patches of a file of features."""
    match = NUMBERED.fullmatch(path.stem)
    beside = path.with_name(f"{match[1]}.position.npy") if match else None
    return beside if beside is not None and beside.is_file() else None


def listed_slide(path: Path) -> str | None:
    """Return the name of the slide that a numbered file is of, by the list beside it; without one the number."""
    match = NUMBERED.fullmatch(path.stem)
    if match is None or path.suffix != ".npy":
        return None
    try:
        state = path.with_name(LIST).stat()
    except OSError:
        return match[1]  # there is none
    if state.st_size >= MOST_BYTES_OF_A_LIST:
        return match[1]
    return _slides_of_numbers(path.absolute().with_name(LIST), state.st_mtime_ns).get(match[1], match[1])


@lru_cache(maxsize=16)
def _slides_of_numbers(listed: Path, changed: int) -> dict[str, str]:
    """Return the slide of each number by a list that changed then; empty where it holds more than pairs of texts."""
    try:
        with listed.open("rb") as raw:
            pairs = _PlainPickle(raw).load()
        if all(isinstance(text, str) for pair in pairs for text in pair):
            return {Path(root).name: Path(slide).stem for slide, root in pairs}
    except (*UNREADABLE, pickle.UnpicklingError):  # MemoryError, OverflowError and RecursionError are among them
        pass
    return {}


class _PlainPickle(pickle._Unpickler):
    """Reads lists and texts; what would load or call anything is refused.

    In Python: that of C takes as much memory as a number in the file says.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is not read")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("a reference is not read")
