# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Annotations that are polygons: read from GeoJSON (QuPath) and the XML of ASAP (CAMELYON), and filled."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from scripts.core.errors import InputError

# Class names, in any case, of what is no lesion. All others count, also polygons without one.
NO_LESION = frozenset({"_2", "normal", "benign", "negative", "background", "exclusion", "ignore*"})
FARTHEST = 1e9  # level-0 pixels: a coordinate beyond is damage
WITHOUT_AREA = frozenset({"dot", "pointset", "measurement"})  # types of ASAP
UNGROUPED = frozenset({"", "none"})  # of ASAP
COLLECTIONS = {"FeatureCollection": "features", "GeometryCollection": "geometries"}  # GeoJSON's → where members are
LINES_AND_POINTS = frozenset({"Point", "MultiPoint", "LineString", "MultiLineString"})
NOT_DRAWN = frozenset({"detection", "cell", "tile", "tmacore", "root"})  # kinds of objects of QuPath


class Painted(NamedTuple):
    """One polygon; all that it covers is annotated if it counts, and is not if it does not."""

    ring: np.ndarray  # (V, 2) x, y at level 0; a hole is joined to it by a bridge of no width
    counts: bool


@dataclass(frozen=True)
class Polygons:
    """The area of polygons that are painted one over the other."""

    painted: list[Painted]  # in this order
    nonzero: bool = False  # how a ring is filled that crosses itself: as ASAP does, else by the even-odd rule

    def bounds(self) -> tuple[float, float, float, float] | None:
        rings = [ring for ring, counts in self.painted if counts]
        if not rings:
            return None
        points = np.concatenate(rings)
        return *points.min(axis=0).tolist(), *points.max(axis=0).tolist()

    def covered(self, corner: np.ndarray, step: float, height: int, width: int) -> np.ndarray:
        covered = np.zeros((height, width), dtype=bool)
        for ring, counts in self.painted:
            ring = (ring - corner) / step
            # only the part of the grid that the polygon may touch: there may be thousands of small ones
            left, top = np.clip(np.floor(ring.min(axis=0)), 0, (width, height)).astype(int)
            right, bottom = np.clip(np.ceil(ring.max(axis=0)), 0, (width, height)).astype(int)
            if left < right and top < bottom:
                windings = _winding_numbers(ring - (left, top), bottom - top, right - left)
                covered[top:bottom, left:right][windings != 0 if self.nonzero else windings % 2 != 0] = counts
        return covered

    def outlines(self) -> list[np.ndarray]:
        return [ring for ring, _ in self.painted]


def read_geojson(
    path: str | Path, content: bytes, names: Collection[str] | None, origin: tuple[int, int] = (0, 0)
) -> Polygons:
    """Read the polygons of GeoJSON; smaller ones are painted over larger ones, as a normal island in a tumour.

    Objects that nobody drew as a lesion (NOT_DRAWN), and classes that QuPath ignores ("Region*"), are skipped. All
    classes but NO_LESION count, or those of `names`; the file counts from `origin`.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON; export the annotations as GeoJSON") from error
    try:
        painted = [
            Painted(_one_ring(rings) + origin, _is_lesion(called, names))
            for called, rings in _polygons(found, ("",))
            if rings not in ([], [[]])  # a polygon may be empty
            and (not called[-1].endswith("*") or called[-1] in NO_LESION)
        ]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not valid GeoJSON; export the annotations again as GeoJSON") from error
    return Polygons(sorted(painted, key=lambda each: -np.prod(np.ptp(each.ring, axis=0))))


def read_asap(path: str | Path, content: bytes, names: Collection[str] | None) -> Polygons:
    """Read the polygons of ASAP; what is no lesion is painted last, as in CAMELYON's own masks.

    Where lesions belong to a group that the file declares, what has none is skipped, as by ASAP's own conversion.
    """
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_TreeWithoutEntities()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not XML that can be read ({error}); export the annotations again") from error
    if root.tag != "ASAP_Annotations":
        raise InputError(f"{path} is XML, but not of ASAP; export the annotations as GeoJSON or from ASAP")
    every = [(drawn, drawn.get("PartOfGroup", "").lower()) for drawn in root.iter("Annotation")]
    declared = {group.get("Name", "").lower() for group in root.iter("Group")} - UNGROUPED - NO_LESION
    left_out = UNGROUPED.difference(names or ()) if any(group in declared for _, group in every) else ()
    try:
        painted = [
            Painted(ring, _is_lesion((group,), names))
            for drawn, group in every
            if group not in left_out
            and drawn.get("Type", "").lower() not in WITHOUT_AREA
            and len(ring := _asap_points(drawn)) > 2
        ]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} has a coordinate that is no number; export the annotations again") from error
    return Polygons(sorted(painted, key=lambda each: not each.counts), nonzero=True)


class _TreeWithoutEntities(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse entities: a few lines may stand for gigabytes, and ASAP writes none."""
        raise ValueError("it has a DOCTYPE")


def _asap_points(drawn: ElementTree.Element) -> np.ndarray:
    """Return (V, 2) of one annotation of ASAP; a rectangle may be given by two of its corners."""
    found = [(int(c.attrib["Order"]), float(c.attrib["X"]), float(c.attrib["Y"])) for c in drawn.iter("Coordinate")]
    points = _require_plausible(np.array(sorted(found), dtype=np.float64).reshape(-1, 3)[:, 1:])
    if drawn.get("Type", "").lower() == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return points


def _is_lesion(called: tuple[str, ...], names: Collection[str] | None) -> bool:
    return called[-1] not in NO_LESION if names is None else any(name in names for name in called)


def _polygons(node: Any, called: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Give class and rings of the polygons in a GeoJSON object; QuPath also writes a bare list of features."""
    if node is None:  # a feature may have no geometry
        return
    if isinstance(node, list):
        for member in node:
            yield from _polygons(member, called)
        return
    kind = node["type"]
    if kind in COLLECTIONS:
        yield from _polygons(node[COLLECTIONS[kind]], called)
    elif kind == "Feature":
        if _was_drawn(node):
            yield from _polygons(node.get("geometry"), _class_names(node))
    elif kind == "Polygon":
        yield called, node["coordinates"]
    elif kind == "MultiPolygon":
        yield from ((called, rings) for rings in node["coordinates"])
    elif kind not in LINES_AND_POINTS:
        raise ValueError(kind)


def _was_drawn(feature: dict[str, Any]) -> bool:
    """Return whether a person drew it: QuPath exports detections, tiles and the cores of an array in the same file."""
    properties = feature.get("properties") or {}
    # each version names the kind elsewhere, and otherwise: tmaCore, tma_core, TMACoreObject
    places = (*(properties.get(key) for key in ("objectType", "object_type", "type")), feature.get("id"))
    kind = str(next(filter(None, places), "")).lower().replace("_", "").replace("-", "")
    return kind.removeprefix("path").removesuffix("object") not in NOT_DRAWN


def _class_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """Return its own name and the full one ("tumor: positive" in QuPath), in lower case; "" without a class."""
    given = (feature.get("properties") or {}).get("classification")
    full = ": ".join(_lineage(given))
    own = given.get("name") if isinstance(given, dict) else None
    return str(own or full).lower(), full.lower()


def _lineage(given: Any) -> list[str]:
    """Return the names of the classes that a class derives from, then its own."""
    if not isinstance(given, dict):
        return [str(given)] if given else []
    return given.get("names") or [*_lineage(given.get("parentClass")), *_lineage(given.get("name"))]


def _one_ring(rings: list[Any]) -> np.ndarray:
    outer, *holes = (_closed(ring) for ring in rings)
    return np.concatenate([outer, *(part for hole in holes for part in (hole, outer[:1]))])


def _closed(ring: Any) -> np.ndarray:
    points = _require_plausible(np.asarray(ring, dtype=np.float64)[:, :2])
    if len(points) < 3:
        raise ValueError("a ring needs three points")
    return points if (points[0] == points[-1]).all() else np.concatenate([points, points[:1]])


def _require_plausible(points: np.ndarray) -> np.ndarray:
    if not (np.abs(points) < FARTHEST).all():  # NaN neither
        raise ValueError("on no slide")
    return points


def _winding_numbers(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (height, width) int16: how often the ring winds about each pixel's centre.

    Every edge adds 1 to all that lies right of it, -1 if it goes up, so a running sum along the rows counts them.
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
    windings = np.zeros((height, width + 1), dtype=np.int16)
    np.add.at(windings, (row, column), np.where(y1 > y0, 1, -1).astype(np.int16))
    return np.add.accumulate(windings, axis=1, out=windings)[:, :width]
