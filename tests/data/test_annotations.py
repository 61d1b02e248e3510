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
"""GeoJSON annotations become tile labels."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from scripts.data.annotations import read_polygons, tile_labels
from scripts.errors import InputError
from scripts.units import Level0Coords, Level0Pixels

TILE = Level0Pixels(256.0)


def lattice(columns: int, rows: int, origin: tuple[int, int] = (0, 0)) -> Level0Coords:
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    return Level0Coords(np.stack([x.ravel(), y.ravel()], axis=1) * int(TILE) + np.array(origin))


def rectangle(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def saved(folder: Path, content: Any) -> Path:
    path = folder / "annotation.geojson"
    path.write_text(json.dumps(content))
    return path


def feature(geometry: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": {}, "geometry": geometry}


def shoelace(ring: np.ndarray) -> float:
    following = np.roll(ring, -1, axis=0)
    return 0.5 * abs(float(np.sum(ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0])))


@pytest.mark.parametrize(("covered", "expected"), [(0.45, False), (0.55, True), (0.0, False), (1.0, True)])
def test_a_tile_is_positive_if_more_than_half_is_annotated(covered: float, expected: bool) -> None:
    polygon = np.array(rectangle(1000, 2000, 1000 + covered * TILE, 2000 + TILE))
    assert tile_labels([polygon], lattice(1, 1, (1000, 2000)), TILE).tolist() == [expected]


def test_exactly_half_is_not_more_than_half() -> None:
    polygon = np.array(rectangle(0, 0, TILE / 2, TILE))
    assert tile_labels([polygon], lattice(1, 1), TILE).tolist() == [False]


def test_two_polygons_that_overlap_are_not_subtracted_from_one_another() -> None:
    whole = np.array(rectangle(0, 0, TILE, TILE))
    assert tile_labels([whole, whole], lattice(1, 1), TILE).tolist() == [True]


def test_only_the_tiles_below_the_rectangle_are_positive() -> None:
    coords = lattice(6, 5, (5000, 3000))
    polygon = np.array(rectangle(5000 + TILE, 3000 + 2 * TILE, 5000 + 3 * TILE, 3000 + 3 * TILE))
    positive = coords[tile_labels([polygon], coords, TILE)]
    assert positive.tolist() == [[5256, 3512], [5512, 3512]]


def test_a_polygon_that_leaves_the_tiles_on_every_side_covers_them_all() -> None:
    polygon = np.array(rectangle(-1e4, -1e4, 1e4, 1e4))
    assert tile_labels([polygon], lattice(3, 2), TILE).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 9))
def test_agrees_with_another_library_wherever_the_cover_is_clear(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    polygon = rng.uniform(-200, 1500, (corners, 2))  # may cross itself
    coords = lattice(5, 5)
    labels = tile_labels([polygon], coords, TILE)
    steps = (np.arange(40) + 0.5) / 40 * TILE
    points = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    for corner, label in zip(coords, labels, strict=True):
        inside = even_odd(polygon, points + corner).mean()
        if abs(inside - 0.5) > 0.06:
            assert label == (inside > 0.5), (corner, inside)


def even_odd(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The parity of the triangles of a fan that hold the point, each asked of matplotlib."""
    inside = np.zeros(len(points), dtype=bool)
    for second, third in pairwise(polygon[1:]):
        inside ^= Outline(np.array([polygon[0], second, third, polygon[0]])).contains_points(points)
    return inside


def test_every_way_to_write_a_polygon_is_read(tmp_path: Path) -> None:
    square, other = rectangle(0, 0, 10, 10), rectangle(20, 20, 24, 24)
    polygon = {"type": "Polygon", "coordinates": [square]}
    multi = {"type": "MultiPolygon", "coordinates": [[square], [other]]}
    for content, areas in [
        (polygon, [100.0]),
        (feature(polygon), [100.0]),
        ({"type": "FeatureCollection", "features": [feature(multi), feature(None)]}, [100.0, 16.0]),
        ([feature(polygon), feature({"type": "Point", "coordinates": [1, 2]})], [100.0]),
        ({"type": "GeometryCollection", "geometries": [polygon, multi]}, [100.0, 100.0, 16.0]),
        ({"type": "FeatureCollection", "features": []}, []),
    ]:
        assert [shoelace(ring) for ring in read_polygons(saved(tmp_path, content))] == areas


@pytest.mark.parametrize("clockwise", [True, False])
def test_a_hole_is_not_annotated_whichever_way_it_turns(tmp_path: Path, clockwise: bool) -> None:
    hole = rectangle(TILE, TILE, 3 * TILE, 2 * TILE)
    second = rectangle(0, 3 * TILE, TILE, 4 * TILE)
    rings = [rectangle(0, 0, 4 * TILE, 4 * TILE), hole[::-1] if clockwise else hole, second]
    coords = lattice(4, 4)
    labels = tile_labels(read_polygons(saved(tmp_path, {"type": "Polygon", "coordinates": rings})), coords, TILE)
    assert (coords[~labels] // int(TILE)).tolist() == [[1, 1], [2, 1], [0, 3]]


def test_no_polygon_and_no_tile(tmp_path: Path) -> None:
    assert tile_labels([], lattice(2, 1), TILE).tolist() == [False, False]
    assert tile_labels([np.zeros((3, 2))], Level0Coords(np.zeros((0, 2), int)), TILE).shape == (0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON; export the annotations as GeoJSON"),
        ('{"type": "Circle"}', "is not valid GeoJSON"),
        ('{"features": []}', "is not valid GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "is not valid GeoJSON"),
        ('{"type": "Polygon", "coordinates": []}', "is not valid GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 2]]]}', "is not valid GeoJSON"),
    ],
)
def test_a_file_that_is_no_geojson_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_polygons(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no annotation can be read from .*gone.geojson: No such file"):
        read_polygons(tmp_path / "gone.geojson")
