# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""SpatialData, as LazySlide writes it: a Zarr store of `tables/<encoder>_tiles/X` and `shapes/tiles` at level 0."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from scripts.core.errors import InputError
from scripts.wsi.features.base import Head, Stored, positive
from scripts.wsi.features.zarr_store import inside_store, zarr_array, zarr_attributes

TABLES, MATRIX, PARQUET = "tables", "X", "shapes.parquet"
KINDS_OF_ARRAY = ("zarr.json", ".zarray")  # what versions 3 and 2 of Zarr keep of one


class SpatialData:
    """A table of features annotates the shapes of the tiles; LazySlide states how those were cut."""

    name = "SpatialData"

    def __init__(self, table: str | None = None) -> None:
        self.table = table  # that counts, where there are several

    def reads(self, head: Head) -> bool:
        return head.kind == "zarr" and bool(tables_of(head.path))

    def read(self, head: Head) -> Stored:
        path, tables = head.path, [self.table] if self.table else tables_of(head.path)
        if len(tables) > 1:
            way = f"write those of one: python -m scripts adopt FOLDER --features_key {tables[0]}"
            raise InputError(f"{path} holds the tables {' and '.join(tables)}; {way}")
        return stored_table(head, tables[0])


def tables_of(store: Path) -> list[str]:
    """Return the tables of a store that are a matrix of features."""
    tables = (store / TABLES).glob("*")
    return sorted(each.name for each in tables if any((each / MATRIX / kind).is_file() for kind in KINDS_OF_ARRAY))


def stored_table(head: Head, table: str) -> Stored:
    """Return the features of a table with the corners of its tiles."""
    path, group = head.path, f"{TABLES}/{table}"
    features = zarr_array(path, f"{group}/{MATRIX}")
    if features is None:
        raise head.lacks(f"no table `{table}` that is a matrix")
    about = zarr_attributes(path, group)
    region = about.get("region")
    tiles = str(region[0] if isinstance(region, list) else region)
    numbers, bounds = _tiles(path, tiles)
    order = zarr_array(path, f"{group}/obs/{about.get('instance_key', 'tile_id')}")
    if order is not None and not np.array_equal(order.whole(), numbers):
        raise InputError(f"the rows of the table {table} of {path} are not those of its shapes {tiles}; extract again")
    spec, slide = _mapping(head.attributes, "tile_spec", tiles), _mapping(head.attributes, "slide_properties")
    scale = positive(spec, "base_downsample") or 1.0
    stride, width = positive(spec, "stride_width"), positive(spec, "width")
    side = float(np.median(bounds[:, 2] - bounds[:, 0])) if len(bounds) else None
    shape = slide.get("shape")
    return Stored(
        features,
        bounds[:, :2],
        pitch=None if stride is None else (float(int(stride * scale)), "stride_width x base_downsample"),
        tile=float(int(width * scale)) if width else side or None,
        encoder=table.removesuffix(f"_{tiles}"),
        mpp=positive(slide, "mpp"),
        size=(int(shape[1]), int(shape[0])) if isinstance(shape, list) and len(shape) == 2 else None,
    )


def _mapping(attributes: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found: Any = attributes
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _tiles(store: Path, shapes: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each tile, and its left, top, right and bottom in level-0 pixels."""
    file = inside_store(store, store / "shapes" / shapes / PARQUET)
    if not file.is_file():
        raise InputError(f"{store} holds no shapes/{shapes}/{PARQUET} of its tiles; extract its features again")
    transformations = zarr_attributes(store, f"shapes/{shapes}").get("coordinateTransformations", [])
    if any(isinstance(each, dict) and each.get("type") != "identity" for each in transformations):
        raise InputError(f"the shapes {shapes} of {store} are not in level-0 pixels, but transformed; extract again")
    try:
        from pyarrow import parquet  # which MLflow brings
    except ImportError as error:
        raise InputError(f"{file} needs a package to be read: pip install pyarrow") from error
    table = parquet.read_table(file)
    bounds: np.ndarray = shapely.bounds(shapely.from_wkb(table["geometry"].to_numpy()))
    numbers = table["tile_id"].to_numpy() if "tile_id" in table.column_names else np.arange(len(bounds))
    return numbers, np.rint(bounds).astype(np.int64) if np.isfinite(bounds).all() else bounds
