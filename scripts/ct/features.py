# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Reads and writes slice features, on which a head is trained in seconds: one HDF5 file per scan.

- ``features`` (N, D) float32, one row per slice from inferior to superior
- ``positions_mm`` (N,) millimetres along the slice normal
- ``sop_instance_uids`` (N,) text, with ``/frame`` behind it where a file holds several; only of DICOM
- ``about`` JSON text: tilt, spacing, warnings of the scan
- attributes of the root: ``format`` = "smooth-mil-slices/1", ``encoder`` (its name), ``settings`` (JSON text: how the
  slices were prepared for it), ``tilt_degrees`` (NaN = unknown), ``source`` (a short hash of the scan's place, if any)
"""

import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from monai.transforms import MapTransform

from scripts.core.errors import InputError
from scripts.core.files import require_finite, whole_file
from scripts.core.hdf5 import require_all_own
from scripts.ct.transforms import bag_entries

SLICES_FORMAT = "smooth-mil-slices/1"
ATTRIBUTES = ("encoder", "settings", "tilt_degrees")
_OR_BRING = (
    "extract its features again, or turn those of another program into such files: python -m scripts features ct"
)


@contextmanager
def opened_features(path: str | Path) -> Iterator[h5py.File]:
    """Open a feature file to read; what it lacks is an error of one line."""
    if not Path(path).is_file():
        raise InputError(f"no feature file {path}; correct the path or extract the features first")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is not an HDF5 file or is damaged; {_OR_BRING}") from error
    with file:
        require_all_own(path, file)
        lacks = [f"holds no dataset `{name}`" for name in ("features", "positions_mm", "about") if name not in file]
        if not lacks and file.attrs.get("format") != SLICES_FORMAT:
            lacks = [f"is not in the format {SLICES_FORMAT} (root attribute `format`)"]
        lacks += [f"lacks the root attribute `{name}`" for name in ATTRIBUTES if name not in file.attrs]
        if lacks:
            raise InputError(f"{path} {lacks[0]}; {_OR_BRING}")
        yield file


def is_feature_file(path: str | Path) -> bool:
    """Return whether a file says that it is in the format of this project."""
    try:
        with h5py.File(path) as file:
            return bool(file.attrs.get("format") == SLICES_FORMAT)
    except OSError:
        return False


@dataclass(frozen=True)
class SliceFeatures:
    """The encoded slices of one scan, from inferior to superior."""

    features: np.ndarray  # (N, D) float32
    positions_mm: np.ndarray  # (N,)
    sop_instance_uids: list[str]  # one per slice, or none at all
    about: dict[str, Any]
    encoder: str
    settings: str  # JSON text
    source: str = ""  # a hash, as a path may name the patient


def write_slice_features(path: str | Path, scan: SliceFeatures) -> None:
    """Write the file whole or not at all."""
    _require_same_slices(path, scan)
    with whole_file(Path(path)) as beside, h5py.File(beside, "w") as file:
        file["features"] = scan.features
        file["positions_mm"] = scan.positions_mm
        if scan.sop_instance_uids:
            file["sop_instance_uids"] = scan.sop_instance_uids
        file["about"] = json.dumps(scan.about)
        file.attrs.update(format=SLICES_FORMAT, encoder=scan.encoder, settings=scan.settings, source=scan.source)
        file.attrs["tilt_degrees"] = scan.about.get("tilt_degrees", math.nan)


def read_slice_features(path: str | Path) -> SliceFeatures:
    """Read the features of one scan."""
    with opened_features(path) as file:
        scan = SliceFeatures(
            features=file["features"][()],
            positions_mm=file["positions_mm"][()],
            sop_instance_uids=file["sop_instance_uids"].asstr()[()].tolist() if "sop_instance_uids" in file else [],
            about=json.loads(file["about"].asstr()[()]),
            encoder=str(file.attrs["encoder"]),
            settings=str(file.attrs["settings"]),
            source=str(file.attrs.get("source", "")),
        )
    _require_same_slices(path, scan)
    return scan


def _require_same_slices(path: str | Path, scan: SliceFeatures) -> None:
    features, slices = scan.features, len(scan.positions_mm)
    if features.ndim != 2 or len(features) != slices or slices == 0 or len(scan.sop_instance_uids) not in (0, slices):
        counts = f"features {features.shape}, {slices} positions and {len(scan.sop_instance_uids)} UIDs"
        raise InputError(f"{path}: {counts} should be of the same slices; extract the features again")
    require_finite(path, features)


def find_slice_features(directory: str | Path) -> list[dict[str, str]]:
    """Return the bags of a directory of feature files, in order of their names."""
    paths = sorted(Path(directory).glob("*.h5"))
    if not paths:
        raise InputError(f"no feature file (*.h5) in {directory}; {_OR_BRING}")
    return [{"image": str(path), "bag_id": path.stem} for path in paths]


class SliceFeaturesd(MapTransform):
    """A transform from the path of a feature file to the bag that `ScanBagd` makes of the scan, with `image` [D, N].

    Args:
        keys: the path.
        allow_missing_keys: whether a bag may lack it.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        for key in self.key_iterator(bag):
            path = str(bag[key])
            scan = read_slice_features(path)
            ids: Sequence[str | int] = scan.sop_instance_uids or range(len(scan.features))
            slices = [{"id": id_, "position_mm": float(mm)} for id_, mm in zip(ids, scan.positions_mm, strict=True)]
            bag.update(bag_entries(bag, slices, scan.about, path))
            bag[key] = torch.from_numpy(np.ascontiguousarray(scan.features.T, dtype=np.float32))
        return bag
