# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""STAMP: h5 with `feats`, and `coords` in micrometres; in version 1 in 224ths of a tile of 256 micrometres."""

import re
from pathlib import Path

import numpy as np

from scripts.core.errors import InputError
from scripts.wsi.features.base import MICROMETRES, Attributes, Head, Stored, positive
from scripts.wsi.features.lattice import commonest_distance
from scripts.wsi.features.named import has_names

NAMES_OF_MICROMETRES = ("um", "µm", "μm", "micrometre", "micrometer", MICROMETRES, "micrometers", "micron", "microns")
TILE_UM, STEPS_OF_VERSION_1 = 256.0, 224  # of a tile, and what the coords of version 1 count to across it
WHOLE = ("slide", "patient")  # feat_type of what is not of tiles
VERSION_1 = "tiles of 256 micrometres as STAMP 1 cuts them"
WEIGHTS_HASH = re.compile(r"-[0-9a-f]{8}$")  # behind the name of the extractor, which later versions leave out


class Stamp:
    """Features of tiles; those of whole slides or patients, and of multiplex images, are refused."""

    name = "STAMP"

    def reads(self, head: Head) -> bool:
        of_tiles = "feats" in head.hdf5 and "features" not in head.hdf5
        of_tiles = of_tiles and ("coords" in head.hdf5 or not has_names(head))
        return of_tiles or head.attributes.get("feat_type") in WHOLE or _is_multiplex(head)

    def read(self, head: Head) -> Stored:
        path, attributes = head.path, head.attributes
        if (whole := attributes.get("feat_type")) in WHOLE:
            raise InputError(f"{path} holds the features of a whole {whole}, not of its patches; give those of tiles")
        if _is_multiplex(head):
            problem = "is of a multiplex image, by STAMP: coord_x and coord_y are pixels of a level that is not known"
            raise InputError(f"{path} {problem}; give a file with `coords`")
        features, stored = head.array("feats"), head.array("coords")
        attributes = head.stated("feats", "/", "coords")
        if (unit := str(attributes.get("unit", "um"))).lower() not in NAMES_OF_MICROMETRES:
            raise InputError(f"the unit of {path} is {unit!r}, micrometres are wanted; extract its features again")
        coords, pitch = _in_micrometres(path, stored.whole(), attributes)
        extractor = attributes.get("extractor")
        return Stored(
            features,
            coords,
            attributes,
            pitch,
            tile=None if pitch is None else pitch[0],
            unit=MICROMETRES,
            encoder=WEIGHTS_HASH.sub("", extractor) if isinstance(extractor, str) else None,
        )


def _is_multiplex(head: Head) -> bool:
    return "coord_x" in head.hdf5 and "coords" not in head.hdf5


def _in_micrometres(
    path: Path, coords: np.ndarray, attributes: Attributes
) -> tuple[np.ndarray, tuple[float, str] | None]:
    """Return the coords, the pitch and where it is stated; without a unit the stride shows the version of STAMP."""
    name = "tile_size_um" if "tile_size_um" in attributes else "tile_size"
    tile = positive(attributes, name)
    stated = None if tile is None else (tile, name)
    if {"unit", "tile_size_um"} & attributes.keys() or coords.ndim != 2 or coords.shape[1] != 2:
        return coords, stated
    stride = positive(attributes, "tile_size") or commonest_distance(coords)
    if stride is None or round(stride) == TILE_UM:
        return coords, stated
    if round(stride) != STEPS_OF_VERSION_1:
        raise InputError(
            f"{path} names no unit and its tiles are {stride:g} apart, not {STEPS_OF_VERSION_1} or {TILE_UM:g} as "
            "of STAMP 1 or 2; give it the root attributes unit and tile_size_um, or extract its features again"
        )
    return coords * (TILE_UM / STEPS_OF_VERSION_1), (TILE_UM, VERSION_1)
