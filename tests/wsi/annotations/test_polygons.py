# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Polygons come out of GeoJSON and ASAP's XML as they were drawn, and are filled where they should be."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from scripts.core.errors import InputError
from scripts.core.units import Level0Coords, Level0Pixels
from scripts.wsi.annotations.annotation import read_annotation
from scripts.wsi.annotations.polygons import Painted, Polygons

TILE = Level0Pixels(256.0)
Ring = list[list[float]]


def rectangle(left: float, top: float, right: float, bottom: float) -> Ring:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def tiles(left: int, top: int, right: int, bottom: int) -> Ring:
    """A rectangle of whole tiles."""
    return rectangle(*(float(side * TILE) for side in (left, top, right, bottom)))


def saved(folder: Path, content: Any) -> Path:
    path = folder / "annotation"
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def annotated(folder: Path, content: Any, values: Sequence[str] | None = None) -> list[list[int]]:
    """Column, row of the tiles of 6 × 5 that are annotated, row by row."""
    columns, rows = np.meshgrid(np.arange(6), np.arange(5))
    places = np.stack([columns.ravel(), rows.ravel()], axis=1)
    labels = read_annotation(saved(folder, content), values=values).tile_labels(Level0Coords(places * int(TILE)), TILE)
    found: list[list[int]] = places[labels].tolist()
    return found


def feature(geometry: Any, name: str | None = None, **properties: Any) -> dict[str, Any]:
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings: Ring) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


# GeoJSON


def test_every_way_to_write_a_polygon_is_read(tmp_path: Path) -> None:
    square, other = rectangle(0, 0, 10, 10), rectangle(20, 20, 24, 24)
    multi = {"type": "MultiPolygon", "coordinates": [[square], [other]]}
    for content, areas in [
        (polygon(square), [100.0]),
        (polygon(square[:-1]), [100.0]),  # not closed
        ({"type": "FeatureCollection", "features": [feature(multi), feature(None)]}, [100.0, 16.0]),
        ([feature(polygon(square)), feature({"type": "Point", "coordinates": [1, 2]})], [100.0]),
        ({"type": "GeometryCollection", "geometries": [polygon(square), multi]}, [100.0, 100.0, 16.0]),
        ({"type": "Feature", "geometry": polygon(square), "properties": None}, [100.0]),
        ([{"type": "Feature", "properties": {}}, feature(polygon()), feature(polygon(square))], [100.0]),
        ([feature({"type": "MultiPolygon", "coordinates": [[[]], [square]]}), feature(None)], [100.0]),
        ([{"type": "Feature"}, feature(polygon([])), feature(None)], []),
    ]:
        outlines = read_annotation(saved(tmp_path, content)).outlines()
        assert [shapely.Polygon(ring).area for ring in outlines] == areas


def test_a_hole_is_not_annotated_whichever_way_it_turns(tmp_path: Path) -> None:
    for hole in (tiles(1, 0, 3, 1), tiles(1, 0, 3, 1)[::-1]):
        rings = [tiles(0, 0, 4, 2), hole, tiles(0, 1, 1, 2)]
        assert annotated(tmp_path, polygon(*rings)) == [[0, 0], [3, 0], [1, 1], [2, 1], [3, 1]]


NO_LESIONS = ["Normal", "normal", "Ignore*", "Exclusion", "Benign", "Negative", "Background", "_2"]


@pytest.mark.parametrize("name", [*NO_LESIONS, "Region*", "Tumor", "Region 1", "", None])
def test_a_class_that_says_it_is_no_lesion_is_cut_out_and_a_region_changes_nothing(
    tmp_path: Path, name: str | None
) -> None:
    row = feature(polygon(tiles(0, 0, 3, 1)), "Tumor")
    inside, alone, around = (
        feature(polygon(tiles(*place)), name) for place in ((1, 0, 2, 1), (4, 3, 5, 4), (0, 2, 3, 5))
    )
    island = feature(polygon(tiles(1, 3, 2, 4)), "Tumor")  # the smaller are painted over the larger
    wanted = [[0, 0], [1, 0], [2, 0], *([x, y] for y in (2, 3, 4) for x in (0, 1, 2)), [4, 3]]
    if name in NO_LESIONS:
        wanted = [[0, 0], [2, 0], [1, 3]]
    elif name == "Region*":
        wanted = [[0, 0], [1, 0], [2, 0], [1, 3]]
    for order in ([alone, around, row, inside, island], [island, inside, row, around, alone]):
        assert annotated(tmp_path, order) == sorted(wanted, key=lambda place: place[::-1])


def of_kind(key: str, kind: Any, column: int) -> dict[str, Any]:
    """An object of one tile; "id" stands beside the properties, as QuPath 0.2 writes it."""
    where = polygon(tiles(column, 0, column + 1, 1))
    return {**feature(where), "id": kind} if key == "id" else feature(where, **{key: kind})


@pytest.mark.parametrize("key", ["objectType", "object_type", "type", "id"])
def test_what_nobody_drew_as_a_lesion_is_none(tmp_path: Path, key: str) -> None:
    for kind, annotation in (
        ("detection", "annotation"),
        ("TileObject", ""),
        ("path_cell_object", "path-annotation-object"),
        ("tma-core", None),
        ("TMACoreObject", "8d1b7a4e-1f5a-4d92-9f0f-9a0f5f0f8a11"),
        ("PathRootObject", 7),
    ):
        assert annotated(tmp_path, [of_kind(key, kind, 0), of_kind(key, annotation, 2)]) == [[2, 0]]
    if key != "id":  # an older place is not asked
        assert annotated(tmp_path, {**of_kind(key, "annotation", 0), "id": "PathTileObject"}) == [[0, 0]]
        assert annotated(tmp_path, {**of_kind(key, "tile", 0), "id": "PathAnnotationObject"}) == []


DERIVED = [
    {"name": "Tumor: Positive", "colorRGB": -1},
    {"names": ["Tumor", "Positive"]},
    {"name": "Positive", "names": ["Tumor", "Positive"]},
    {"name": "Positive", "parentClass": {"name": "Tumor", "parentClass": None}},
    "Tumor: Positive",
]


@pytest.mark.parametrize(
    ("classification", "asked", "counts"),
    [
        *((each, ["tumor: positive"], True) for each in DERIVED),
        *((each, ["Stroma: Positive", "Tumor"], False) for each in DERIVED),
        *((each, ["Positive"], True) for each in DERIVED[2:4]),  # by its own name
        ({"name": "c", "parentClass": {"name": "B", "parentClass": {"name": "A"}}}, ["a: b: c"], True),
        ("Benign", ["In-situ tumor", "benign"], True),
        ({"names": ["Tumor", "Negative"]}, None, True),  # negative for a stain
        ({"name": "Negative", "parentClass": {"name": "Tumor"}}, None, True),
        *((each, None, False) for each in ({"names": ["Normal"]}, "Normal", {"names": ["Ignore*"]})),
    ],
)
def test_a_class_is_known_by_its_own_name_and_by_the_full_one(
    tmp_path: Path, classification: Any, asked: list[str] | None, counts: bool
) -> None:
    drawn = feature(polygon(tiles(1, 2, 2, 3)), classification=classification)
    around = feature(polygon(tiles(1, 2, 3, 3)), asked[0] if asked else None)
    assert annotated(tmp_path, [drawn, around], asked) == [[1, 2]] * counts + [[2, 2]]  # what does not count is cut out


# ASAP


def drawn_in_asap(ring: Ring, group: str = "None", kind: str = "Polygon") -> str:
    points = [f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(ring)]
    shuffled = "".join(points[::2] + points[1::2])  # their order is in the file, not theirs in the file
    return (
        f'<Annotation Name="Annotation 0" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{shuffled}</Coordinates></Annotation>"
    )


def asap(*drawn: str, groups: Sequence[str] = ("_2",)) -> str:
    declared = (f'<Group Name="{name}" PartOfGroup="None" Color="#64FE2E"><Attributes /></Group>' for name in groups)
    return (
        f'<?xml version="1.0"?>\n<ASAP_Annotations>\n<Annotations>{"".join(drawn)}</Annotations>'
        f"<AnnotationGroups>{''.join(declared)}</AnnotationGroups></ASAP_Annotations>"
    )


@pytest.mark.parametrize("kind", ["Polygon", "Spline", "Rectangle", "Dot", "PointSet", "Measurement"])
def test_what_has_an_area_counts_in_any_group_but_those_of_no_lesion(tmp_path: Path, kind: str) -> None:
    """What is no lesion is painted last, as in CAMELYON16's own masks; of a rectangle two corners may be given."""
    has_area = kind in ("Polygon", "Spline", "Rectangle")
    for group in ("_0", "_1", "Tumor", "metastases", "None"):
        square = drawn_in_asap(tiles(1, 2, 2, 3)[:-1], group, kind)
        assert annotated(tmp_path, asap(square, drawn_in_asap([[1, 1], [2, 2]]))) == ([[1, 2]] if has_area else [])
    for group in ("_2", "Exclusion", "normal"):
        hole, island = drawn_in_asap(tiles(1, 0, 3, 1), group, kind), drawn_in_asap(tiles(1, 0, 2, 1), "_0")
        wanted = [[0, 0], [3, 0]] if has_area else [[0, 0], [1, 0], [2, 0], [3, 0]]
        assert annotated(tmp_path, asap(hole, drawn_in_asap(tiles(0, 0, 4, 1), "_1"), island)) == wanted
    corners = drawn_in_asap([[3 * TILE, 2 * TILE], [1 * TILE, 1 * TILE]], "_0", kind)
    assert annotated(tmp_path, asap(corners)) == ([[1, 1], [2, 1]] if kind == "Rectangle" else [])


@pytest.mark.parametrize(
    ("first", "groups", "asked", "counts"),
    [
        *(("Tumor", ["tumor"], asked, False) for asked in (None, ["Tumor"])),  # others are in a group that is declared
        ("Tumor", ["Tumor"], ["Tumor", "None"], True),  # it is asked for
        ("Tumor", [], None, True),  # no group is declared
        *(("None", groups, None, True) for groups in ([], ["Tumor"], ["None"], ["Tumor", "Normal"])),  # all is in none
        ("None", ["Exclusion"], None, True),  # the groups are of what is no lesion
    ],
)
def test_what_is_in_no_group_is_left_out_where_others_are_in_one(
    tmp_path: Path, first: str, groups: list[str], asked: list[str] | None, counts: bool
) -> None:
    without = drawn_in_asap(tiles(4, 4, 5, 5)).replace('PartOfGroup="None"', "")
    drawn = drawn_in_asap(tiles(0, 0, 2, 1), first), drawn_in_asap(tiles(1, 0, 4, 1)), without
    hole = [drawn_in_asap(tiles(1, 0, 2, 1), "Exclusion")] if "Exclusion" in groups else []
    wanted = [[0, 0], [1, 0], *([[2, 0], [3, 0]] if counts else [])]
    if hole:
        wanted.remove([1, 0])
    if counts and (asked is None or "" in asked):
        wanted.append([4, 4])
    assert annotated(tmp_path, asap(*drawn, *hole, groups=groups), asked) == wanted


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol1 "&lol;&lol;">]>'
    "<ASAP_Annotations>&lol1;</ASAP_Annotations>"
)


SQUARE = json.dumps(polygon(tiles(0, 0, 2, 2))).encode()
REFUSED: list[tuple[str | bytes | None, str]] = [
    (None, "^no annotation can be read from .*annotation: No such file or directory; correct the path"),
    *((empty, "is empty; export the annotations again") for empty in (b"", gzip.compress(b""))),
    (gzip.compress(SQUARE)[:-9], "is damaged .*; export the annotations again"),
    ("not json", "is no annotation; give GeoJSON, the XML of ASAP, or a mask as TIFF or PNG"),
    (SQUARE * 2000, "holds more than a gigabyte; export the annotations alone"),
    (SQUARE, r"holds polygons, and the values \[1\] are not all class names; give those"),
    *((text, "is not JSON; export the annotations as GeoJSON") for text in ("{not json", "[" * 100_000)),
    *((text, "is not valid GeoJSON") for text in ('{"type": "Circle"}', '{"features": []}', "[1]")),
    *(
        (f'{{"type": "Polygon", "coordinates": {rings}}}', "is not valid GeoJSON")
        for rings in ("null", "[[[0, 0], [1, 1]]]", '[[["a", 0], [1, 1], [2, 2]]]', "[[[NaN, 0], [1, 1], [2, 2]]]")
    ),
    ('{"type": "Feature", "geometry": null, "properties": [1]}', "is not valid GeoJSON"),
    ("<ASAP_Annotations>", "is not XML that can be read .*; export the annotations again"),
    ('<?xml version="1.0" encoding="klingon"?><a/>', "is not XML that can be read"),
    (BILLION_LAUGHS, "is not XML that can be read .it has a DOCTYPE."),
    ("<Annotations><Annotation /></Annotations>", "is XML, but not of ASAP; export the annotations as GeoJSON"),
    *(
        (asap(f'<Annotation><Coordinate Order="0" {place}/></Annotation>'), "has a coordinate that is no number")
        for place in ('X="1"', 'X="NaN" Y="2"', 'X="1,5" Y="2"')
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_that_is_no_annotation_is_named(
    tmp_path: Path, content: str | bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.wsi.annotations.annotation.MOST_BYTES", 100_000)
    path = tmp_path / "annotation" if content is None else saved(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        read_annotation(path, values=[1] if "values" in message else None)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Filling


def filled(folder: Path, content: Any, size: int) -> np.ndarray:
    return read_annotation(saved(folder, content)).area.covered(np.zeros(2), 1.0, size, size)


@pytest.mark.parametrize("seed", range(6))
def test_asap_fills_what_the_outline_winds_about(tmp_path: Path, seed: int) -> None:
    ring = np.random.default_rng(seed).uniform(-10, 70, (15, 2))
    centres = np.stack(np.meshgrid(np.arange(60), np.arange(60)), axis=-1) + 0.5
    x, y = np.moveaxis(np.concatenate([ring, ring[:1]]) - centres[:, :, None], -1, 0)
    seen_at = np.unwrap(np.arctan2(y, x))  # each way to turn to the next corner is less than half a turn
    windings = np.rint((seen_at[..., -1] - seen_at[..., 0]) / (2 * np.pi)).astype(int)
    assert np.abs(windings).max() > 1
    assert (filled(tmp_path, asap(drawn_in_asap(ring.tolist())), 60) == (windings != 0)).all()
    assert (filled(tmp_path, polygon(ring.tolist()), 60) == (windings % 2 == 1)).all()


def test_the_bounds_are_of_what_counts_alone() -> None:
    inner, outer = np.array(rectangle(10, 20, 30, 50)), np.array(rectangle(0, 0, 99, 99))
    assert Polygons([Painted(outer, False), Painted(inner, True)]).bounds() == (10, 20, 30, 50)
    assert Polygons([Painted(outer, False)]).bounds() is None
