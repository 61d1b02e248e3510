# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slice features of a scan in one HDF5 file, on which a head is trained in seconds.

One HDF5 file per scan:

- ``features`` (N, D) float32, one row per slice from inferior to superior
- ``positions_mm`` (N,) millimetres along the slice normal
- ``sop_instance_uids`` (N,) text, with ``/frame`` behind it where a file holds several; absent for NIfTI and NRRD
- ``about`` JSON text: what is to be known of the scan (tilt, spacing, warnings)
- attributes of the root: ``format`` = "smooth-mil-slices/1", ``encoder`` (its name),
  ``settings`` (JSON text: how the slices were prepared for it), ``tilt_degrees`` (NaN = unknown),
  ``source`` (a short hash of where the scan lay; may be absent)
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.core.errors import InputError
from scripts.core.files import require_finite, whole_file
from scripts.ct.transforms import bag_entries

FORMAT = "smooth-mil-slices/1"
DATASETS = ("features", "positions_mm", "about")
ATTRIBUTES = ("encoder", "settings", "tilt_degrees")

logger = logging.getLogger(__name__)


@contextmanager
def opened_features(
    path: str | Path, form: str, datasets: Sequence[str], attributes: Sequence[str]
) -> Iterator[h5py.File]:
    """A feature file of one form, read only; what it lacks is said in one line."""
    if not Path(path).is_file():
        raise InputError(f"no feature file {path}; correct the path or extract the features first")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is not an HDF5 file or is damaged; extract its features again") from error
    with file:
        for name in datasets:
            if name not in file:
                raise InputError(f"{path} holds no dataset `{name}`; extract its features again")
        if file.attrs.get("format") != form:
            raise InputError(f"{path} is not of the form {form} (root attribute `format`); extract its features again")
        missing = [name for name in attributes if name not in file.attrs]
        if missing:
            raise InputError(f"{path} lacks the root attribute `{missing[0]}`; extract its features again")
        yield file


def feature_files(directory: str | Path) -> list[Path]:
    """The feature files of a directory in order of their names."""
    paths = sorted(Path(directory).glob("*.h5"))
    if not paths:
        raise InputError(f"no feature file (*.h5) in {directory}; extract the features first")
    return paths


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
    """Write the file whole or not at all: an interrupted run leaves nothing that looks finished."""
    _check(path, scan)
    with whole_file(Path(path)) as beside, h5py.File(beside, "w") as file:
        file["features"] = scan.features
        file["positions_mm"] = scan.positions_mm
        if scan.sop_instance_uids:
            file["sop_instance_uids"] = scan.sop_instance_uids
        file["about"] = json.dumps(scan.about)
        file.attrs.update(
            format=FORMAT,
            encoder=scan.encoder,
            settings=scan.settings,
            source=scan.source,
            tilt_degrees=scan.about.get("tilt_degrees", math.nan),
        )


def read_slice_features(path: str | Path) -> SliceFeatures:
    """Read one file of this form, or say in one line why it is not one."""
    with opened_features(path, FORMAT, DATASETS, ATTRIBUTES) as file:
        scan = SliceFeatures(
            features=file["features"][()],
            positions_mm=file["positions_mm"][()],
            sop_instance_uids=file["sop_instance_uids"].asstr()[()].tolist() if "sop_instance_uids" in file else [],
            about=json.loads(file["about"].asstr()[()]),
            encoder=str(file.attrs["encoder"]),
            settings=str(file.attrs["settings"]),
            source=str(file.attrs.get("source", "")),
        )
    _check(path, scan)
    return scan


def _check(path: str | Path, scan: SliceFeatures) -> None:
    features, slices = scan.features, len(scan.positions_mm)
    if features.ndim != 2 or len(features) != slices or slices == 0 or len(scan.sop_instance_uids) not in (0, slices):
        raise InputError(
            f"features {features.shape}, {slices} positions and {len(scan.sop_instance_uids)} UIDs should be of the "
            f"same slices (file {path}); extract the features again"
        )
    require_finite(path, features)


def find_slice_features(directory: str | Path) -> list[dict[str, str]]:
    """The bags of a directory of feature files, in order of their names."""
    return [{"image": str(path), "bag_id": path.stem} for path in feature_files(directory)]


class SliceFeaturesd(MapTransform):
    """The path of a feature file becomes the bag that `ScanBagd` makes of the scan itself, with `image` [D, N]."""

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        for key in self.key_iterator(bag):
            path = str(bag[key])
            scan = read_slice_features(path)
            ids: Sequence[str | int] = scan.sop_instance_uids or range(len(scan.features))
            positions = scan.positions_mm.tolist()
            slices = [{"id": id_, "position_mm": mm} for id_, mm in zip(ids, positions, strict=True)]
            bag.update(bag_entries(bag, slices, scan.about, path))
            bag[key] = torch.from_numpy(np.ascontiguousarray(scan.features.T, dtype=np.float32))
        return bag
