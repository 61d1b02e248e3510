# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The project's own format of patch features: one HDF5 file per slide, written and read.

- ``features`` (N, D) float32 or float16; N is 0 for a slide without tissue
- ``coords`` (N, 2) integers: top-left x, y of each patch in level-0 pixels
- ``thumbnail`` (h, w, 3) uint8, optional
- attributes of the root: ``format`` = "smooth-mil-features/1", ``slide_id``, ``encoder`` (its name),
  ``pitch_level0`` (level-0 pixels from one patch to the next), ``tile_level0`` (level-0 pixels a patch spans),
  ``mpp`` (micrometres per level-0 pixel, NaN = unknown), ``slide_width`` and ``slide_height`` (level-0 pixels),
  ``bounds_x`` and ``bounds_y`` (level-0 pixels to what QuPath takes for 0, 0; absent = 0, NaN = unknown),
  ``thumbnail_downsample`` (level-0 pixels per thumbnail pixel, NaN = no thumbnail), ``share_tissue``, ``share_pen``
  and the like (of the slide, where its tissue was looked for)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from scripts.core.errors import InputError
from scripts.core.files import require_finite, whole_file
from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.wsi.features.base import Attributes, Head, Stored, number, positive

OWN_FORMAT = "smooth-mil-features/1"
OWN_ATTRIBUTES = ("slide_id", "encoder", "pitch_level0", "tile_level0", "mpp", "slide_width", "slide_height")


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
    origin: tuple[int, int] | None = (0, 0)  # of OpenSlide's bounds, which QuPath takes for 0, 0; None = not known
    shares: Mapping[str, float] = field(default_factory=dict)  # of the slide: tissue, pen, ...; written, not read back


def write_features(path: str | Path, slide: PatchFeatures) -> None:
    """Write the file whole or not at all: an interrupted run leaves nothing that looks finished."""
    features, coords = slide.features, slide.coords
    are_numbers = features.dtype in (np.float32, np.float16) and np.issubdtype(coords.dtype, np.integer)
    if features.ndim != 2 or coords.shape != (len(features), 2) or not are_numbers:
        raise InputError(
            f"features {features.dtype} {features.shape} and coords {coords.dtype} {coords.shape} should be float32 or "
            f"float16 (N, D) and integers (N, 2) (file {path}); extract the features again"
        )
    require_finite(path, features)
    bounds_x, bounds_y = slide.origin or (math.nan, math.nan)
    with whole_file(Path(path)) as beside, h5py.File(beside, "w") as file:
        file["features"], file["coords"] = features, coords
        if slide.thumbnail is not None:
            file.create_dataset("thumbnail", data=slide.thumbnail, compression="gzip")
        file.attrs.update(
            format=OWN_FORMAT,
            slide_id=slide.slide_id,
            encoder=slide.encoder,
            pitch_level0=slide.pitch,
            tile_level0=slide.tile,
            mpp=slide.mpp or math.nan,
            slide_width=slide.slide_size[0],
            slide_height=slide.slide_size[1],
            bounds_x=bounds_x,
            bounds_y=bounds_y,
            thumbnail_downsample=slide.thumbnail_downsample or math.nan,
            **{f"share_{name}": share for name, share in slide.shares.items()},
        )


class SmoothMil:
    """Files whose attribute `format` states their version."""

    name = "smooth-mil"

    def reads(self, head: Head) -> bool:
        return head.kind == "hdf5" and "format" in head.attributes  # that of safetensors is the library's

    def read(self, head: Head) -> Stored:
        path, attributes = head.path, head.attributes
        if (stated := attributes["format"]) != OWN_FORMAT:
            raise InputError(
                f"{path} is not of the format {OWN_FORMAT} (its root attribute `format` is {str(stated)[:40]!r}); "
                "extract its features again"
            )
        features, coords = head.array("features"), head.array("coords").whole()
        for name in OWN_ATTRIBUTES:
            if name not in head.hdf5["/"].attrs:
                raise InputError(f"{path} lacks the root attribute `{name}`; extract its features again")
        if coords.dtype.kind == "f" and coords.size:
            raise InputError(f"coords {coords.dtype} should be integers (file {path}); extract the features again")
        pitch, tile = positive(attributes, "pitch_level0"), positive(attributes, "tile_level0")
        if pitch is None or tile is None:
            raise InputError(f"{path} states no pitch_level0 or tile_level0 above 0; extract its features again")
        encoder = attributes.get("encoder")
        return Stored(
            features,
            coords,
            attributes,
            (pitch, "pitch_level0"),
            tile,
            slide_id=str(attributes.get("slide_id", "")),
            encoder=encoder if isinstance(encoder, str) else "",
            mpp=positive(attributes, "mpp"),
            origin=_origin(attributes),
        )


def _origin(attributes: Attributes) -> tuple[int, int] | None:
    x, y = (number({"bounds_x": 0, "bounds_y": 0, **attributes}, name) for name in ("bounds_x", "bounds_y"))
    return None if x is None or y is None else (int(x), int(y))
