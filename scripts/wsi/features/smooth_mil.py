# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Patch features of a slide in the project's own form: one HDF5 file per slide.

- ``features`` (N, D) float32 or float16; N is 0 for a slide without tissue
- ``coords`` (N, 2) integers: top-left x, y of each patch in level-0 pixels
- ``thumbnail`` (h, w, 3) uint8, optional
- attributes of the root: ``format`` = "smooth-mil-features/1", ``slide_id``, ``encoder`` (its name),
  ``pitch_level0`` (level-0 pixels from one patch to the next), ``tile_level0`` (level-0 pixels a patch spans),
  ``mpp`` (micrometres per level-0 pixel, NaN = unknown), ``slide_width`` and ``slide_height`` (level-0 pixels),
  ``bounds_x`` and ``bounds_y`` (level-0 pixels to what QuPath takes for 0, 0; absent = 0),
  ``thumbnail_downsample`` (level-0 pixels per thumbnail pixel, NaN = no thumbnail)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from scripts.core.errors import InputError
from scripts.core.files import require_finite, whole_file
from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.wsi.features.base import OWN_FORMAT, FeatureFile, FeatureHeader, open_features


@dataclass(frozen=True)
class PatchFeatures:
    """The encoded patches of one slide."""

    features: np.ndarray  # (N, D)
    coords: Level0Coords
    pitch: Level0Pixels
    tile: Level0Pixels
    mpp: MicronsPerPixel | None
    encoder: str
    slide_id: str
    slide_size: tuple[int, int]  # width, height in level-0 pixels
    thumbnail: np.ndarray | None = None  # (h, w, 3) uint8
    thumbnail_downsample: float | None = None
    origin: tuple[int, int] = (0, 0)  # of the bounds that OpenSlide tells, which QuPath takes for 0, 0


def write_features(path: str | Path, slide: PatchFeatures) -> None:
    """Write the file whole or not at all: an interrupted run leaves nothing that looks finished."""
    _check_arrays(path, slide.features, slide.coords)
    require_finite(path, slide.features)
    with whole_file(Path(path)) as beside, h5py.File(beside, "w") as file:
        file["features"] = slide.features
        file["coords"] = slide.coords
        if slide.thumbnail is not None:
            file.create_dataset("thumbnail", data=slide.thumbnail, compression="gzip")
        width, height = slide.slide_size
        bounds_x, bounds_y = slide.origin
        file.attrs.update(
            format=OWN_FORMAT,
            slide_id=slide.slide_id,
            encoder=slide.encoder,
            pitch_level0=slide.pitch,
            tile_level0=slide.tile,
            mpp=_or_nan(slide.mpp),
            slide_width=width,
            slide_height=height,
            bounds_x=bounds_x,
            bounds_y=bounds_y,
            thumbnail_downsample=_or_nan(slide.thumbnail_downsample),
        )


def read_header(path: str | Path) -> FeatureHeader:
    """The units and the origin of the patches; fails as ``read_features`` does, and is fast."""
    with open_features(path) as file:
        return _own(file).header


def read_features(path: str | Path) -> PatchFeatures:
    """Read one file of the project's own form, or say in one line why it is not one."""
    with open_features(path) as file:
        header = _own(file).header
        features = file.read(0, header.patches)
    with h5py.File(path, "r") as raw:
        thumbnail = raw["thumbnail"][()] if "thumbnail" in raw else None
        downsample = float(raw.attrs.get("thumbnail_downsample", math.nan))
    require_finite(path, features)
    return PatchFeatures(
        features=features,
        coords=Level0Coords(file.coords),
        pitch=header.pitch,
        tile=header.tile,
        mpp=header.mpp,
        encoder=header.encoder,
        slide_id=header.slide_id,
        slide_size=header.slide_size or (0, 0),
        thumbnail=thumbnail,
        thumbnail_downsample=None if math.isnan(downsample) else downsample,
        origin=header.origin or (0, 0),
    )


def _own(file: FeatureFile) -> FeatureFile:
    if file.header.form != "smooth-mil":
        raise InputError(
            f"{file.path} is of {file.header.form}, not of the form {OWN_FORMAT}; extract its features again"
        )
    return file


def _check_arrays(path: str | Path, features: np.ndarray, coords: np.ndarray) -> None:
    advice = f"(file {path}); extract the features again"
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise InputError(f"features {features.shape} and coords {coords.shape} should be (N, D) and (N, 2) {advice}")
    if features.dtype not in (np.float32, np.float16) or not np.issubdtype(coords.dtype, np.integer):
        raise InputError(
            f"features {features.dtype} and coords {coords.dtype} should be float32 or float16 and integers {advice}"
        )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
