# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Where a pathologist drew: the polygons of a GeoJSON file (QuPath writes them), and the tiles they cover."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.errors import InputError
from scripts.units import Level0Coords, Level0Pixels

SAMPLES = 16  # points per side of a tile that are asked whether they are annotated


def read_polygons(path: str | Path) -> list[np.ndarray]:
    """The annotated areas of a GeoJSON file, in level-0 pixels; points and lines have no area and are left out.

    Each polygon is one (V, 2) ring to be filled by the even-odd rule: a hole hangs on it by a bridge of no width.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"no annotation can be read from {path}: {error.strerror}; correct the path") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON; export the annotations as GeoJSON") from error
    try:
        return [_one_ring(rings) for rings in _polygons(content)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is not valid GeoJSON; export the annotations again as GeoJSON") from error


def tile_labels(polygons: list[np.ndarray], coords: Level0Coords, tile: Level0Pixels) -> np.ndarray:
    """(N,) bool: more than half of the tile is annotated."""
    if not polygons or len(coords) == 0:
        return np.zeros(len(coords), dtype=bool)
    sample = tile / SAMPLES
    corner = coords.min(axis=0)
    first = np.rint((coords - corner) / sample).astype(int)  # (N, 2) column, row of each tile's first sample
    width, height = first.max(axis=0) + SAMPLES
    covered = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        covered |= _filled((polygon - corner) / sample, height, width)
    total = np.pad(covered.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32), ((1, 0), (1, 0)))
    (left, top), (right, bottom) = first.T, first.T + SAMPLES
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return inside > SAMPLES**2 / 2


def _polygons(node: Any) -> Iterator[list[Any]]:
    """The polygons below a GeoJSON object, each a list of rings; QuPath also writes a bare list of features."""
    if node is None:  # a feature may have no geometry
        return
    if isinstance(node, list):
        for member in node:
            yield from _polygons(member)
        return
    match node["type"]:
        case "FeatureCollection":
            yield from _polygons(node["features"])
        case "Feature":
            yield from _polygons(node["geometry"])
        case "GeometryCollection":
            yield from _polygons(node["geometries"])
        case "Polygon":
            yield node["coordinates"]
        case "MultiPolygon":
            yield from node["coordinates"]
        case "Point" | "MultiPoint" | "LineString" | "MultiLineString":
            return
        case unknown:
            raise ValueError(unknown)


def _one_ring(rings: list[Any]) -> np.ndarray:
    outer, *holes = (_closed(ring) for ring in rings)
    return np.concatenate([outer, *(np.concatenate([hole, outer[:1]]) for hole in holes)])


def _closed(ring: Any) -> np.ndarray:
    points = np.asarray(ring, dtype=np.float64)[:, :2]
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError("a ring needs three points")
    return points if (points[0] == points[-1]).all() else np.concatenate([points, points[:1]])


def _filled(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool: the centre of the pixel lies in the ring, by the even-odd rule.

    Every edge flips all that lies right of it, so a running exclusive-or along the rows fills the ring.
    """
    start, end = ring, np.roll(ring, -1, axis=0)
    # an edge crosses the rows whose centres lie in [lower y, upper y): no vertex is counted twice
    first_row = np.clip(np.ceil(np.minimum(start, end)[:, 1] - 0.5), 0, height).astype(int)
    end_row = np.clip(np.ceil(np.maximum(start, end)[:, 1] - 0.5), 0, height).astype(int)
    crossings = end_row - first_row
    edge = np.repeat(np.arange(len(ring)), crossings)
    row = np.arange(crossings.sum()) - np.repeat(crossings.cumsum() - crossings, crossings) + first_row[edge]
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
    flips = np.zeros((height, width + 1), dtype=np.uint8)
    np.bitwise_xor.at(flips, (row, column), 1)
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :width].astype(bool)
