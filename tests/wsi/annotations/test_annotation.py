# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What is annotated becomes tile labels and lesions, whichever file said so."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist, squareform

from scripts.core.lesions import Lesions
from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.wsi.annotations import annotation as module
from scripts.wsi.annotations.annotation import Annotation, joined, read_annotation
from scripts.wsi.annotations.polygons import Painted, Polygons

TILE = Level0Pixels(256.0)
MPP = MicronsPerPixel(0.5)


def lattice(columns: int, rows: int, origin: tuple[int, int] = (0, 0)) -> Level0Coords:
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    return Level0Coords(np.stack([x.ravel(), y.ravel()], axis=1) * int(TILE) + np.array(origin))


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])


def ellipse(x: float, y: float, half_width: float, half_height: float, turned: float = 0.0) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    points = np.stack([half_width * np.cos(angle), half_height * np.sin(angle)], axis=1)
    cos, sin = np.cos(turned), np.sin(turned)
    return points @ np.array([[cos, sin], [-sin, cos]]) + (x, y)


def drawn(*polygons: np.ndarray) -> Annotation:
    return Annotation(Polygons([Painted(polygon, True) for polygon in polygons]))


@pytest.mark.parametrize(("covered", "expected"), [(0.45, False), (0.5, False), (0.55, True), (1.0, True)])
def test_a_tile_is_positive_if_more_than_half_is_annotated(covered: float, expected: bool) -> None:
    polygon = rectangle(1000, 2000, 1000 + covered * TILE, 2000 + TILE)
    for several in ([polygon], [polygon, polygon]):  # they are not subtracted from one another
        assert drawn(*several).tile_labels(lattice(1, 1, (1000, 2000)), TILE).tolist() == [expected]


def test_no_polygon_and_no_tile() -> None:
    two, none = lattice(2, 1), Level0Coords(np.zeros((0, 2), int))
    for nothing in (drawn(), drawn(np.zeros((3, 2)))):
        assert nothing.tile_labels(two, TILE).tolist() == [False, False]
        assert nothing.tile_labels(none, TILE).shape == (0,)
        lesions = nothing.lesions(two, TILE, MPP)
        assert (lesions.of_instance.tolist(), lesions.count) == ([0, 0], 0)
    assert drawn(rectangle(0, 0, 900, 900)).lesions(none, TILE, MPP).count == 1


@pytest.mark.parametrize("seed", range(40))
def test_a_tile_of_any_polygon_is_labelled_by_its_cover_wherever_that_is_clear(seed: int) -> None:
    """test_polygons.py asks another oracle whether the cover is right."""
    rng = np.random.default_rng(seed)
    annotation = drawn(rng.uniform(-200, 1500, (rng.integers(3, 10), 2)))  # may cross itself
    cells = annotation.area.covered(np.zeros(2), TILE / 40, 5 * 40, 5 * 40)
    inside = cells.reshape(5, 40, 5, 40).mean(axis=(1, 3)).ravel()
    clear = np.abs(inside - 0.5) > 0.06
    assert (annotation.tile_labels(lattice(5, 5), TILE) == (inside > 0.5))[clear].all()


# Lesions: of 0.5 micrometres per pixel, so that 100 micrometres are 200 pixels.


def square(left_um: float, top_um: float, side_um: float = 300) -> np.ndarray:
    return rectangle(left_um, top_um, left_um + side_um, top_um + side_um) / MPP


def centred_at(*places_um: tuple[float, float]) -> Level0Coords:
    """Tiles of 256 pixels about these places."""
    return Level0Coords(np.rint(np.array(places_um) / MPP - TILE / 2).astype(int))


def test_a_patch_is_in_the_lesion_whose_rim_or_hole_its_centre_lies_in() -> None:
    places = centred_at((280, 150), (325, 150), (350, 150), (-30, -30), (-20, -20))
    found = drawn(square(0, 0)).lesions(places, TILE, MPP)
    assert found.of_instance.tolist() == [1, 1, 0, 0, 1]  # a rim of 37.5; 42 and 28 from a corner
    ring = Annotation(Polygons([Painted(square(0, 0, 1000), True), Painted(square(300, 300, 400), False)]))
    middle = centred_at((500, 500))
    assert ring.tile_labels(middle, TILE).tolist() == [False]
    assert ring.lesions(middle, TILE, MPP).of_instance.tolist() == [1]


@pytest.mark.parametrize("turned", [0.0, 0.6])
@pytest.mark.parametrize(("length", "is_itc"), [(180, True), (220, False)])
def test_a_lesion_shorter_than_200_micrometres_is_excluded(length: float, is_itc: bool, turned: float) -> None:
    lesion = ellipse(1000, 1000, length / 2 / MPP, 60 / 2 / MPP, turned)
    found = drawn(lesion, square(2000, 2000)).lesions(centred_at((500, 500), (2150, 2150)), TILE, MPP)
    assert sorted(found.of_instance.tolist()) == [1, 2]
    assert found.excluded == ((int(found.of_instance[0]),) if is_itc else ())


@pytest.mark.parametrize("seed", range(6))
def test_lesions_are_the_groups_of_circles_that_single_linkage_makes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(0, 4000, (25, 2)), rng.uniform(40, 250, 25)  # micrometres
    gap = cdist(centre, centre) - radius - radius[:, None]
    np.fill_diagonal(gap, 0)
    keep = ~((gap > 60) & (gap < 90)).any(axis=0)  # the others are too near to the 75 to say
    centre, radius, gap = centre[keep], radius[keep], gap[np.ix_(keep, keep)]
    expected = fcluster(linkage(squareform(np.maximum(gap, 0), checks=False), "single"), 75, "distance")
    circles = [ellipse(x, y, r, r) / MPP for (x, y), r in zip(centre, radius, strict=True)]
    found = drawn(*circles).lesions(centred_at(*centre), TILE, MPP)
    assert found.count == expected.max() > 3
    assert len(set(zip(found.of_instance.tolist(), expected.tolist(), strict=True))) == found.count
    for place, group, length in zip(found.of_instance.tolist(), expected, 2 * radius, strict=True):
        if (expected == group).sum() == 1 and abs(length - 200) > 10:
            assert (place in found.excluded) == (length < 200), length


def test_a_large_slide_is_labelled_in_bands_and_its_lesions_are_found_on_larger_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coords = Level0Coords(np.random.default_rng(0).permutation(lattice(20, 30)))
    annotation = drawn(ellipse(2000, 3000, 1800, 2500), rectangle(4000, 6000, 5000, 7000))
    whole = annotation.tile_labels(coords, TILE)
    assert 100 < whole.sum() < 400
    far_apart, places = ((0, 0), (20_000, 0), (0, 20_000)), centred_at((150, 150), (20_150, 150), (150, 20_150))
    monkeypatch.setattr(module, "CELLS", 20 * 16 * 50)
    assert (annotation.tile_labels(coords, TILE) == whole).all()
    monkeypatch.setattr(module, "CELLS", 1_000_000)
    found = drawn(*(square(*corner) for corner in far_apart)).lesions(places, TILE, MPP)
    assert (sorted(found.of_instance), found.count, found.excluded) == ([1, 2, 3], 3, ())


def test_without_a_scale_areas_join_where_they_touch_and_none_is_excluded() -> None:
    touching = [rectangle(0, 0, 600, 600), rectangle(600, 600, 1200, 1200), rectangle(1400, 0, 1500, 100)]
    found = drawn(*touching).lesions(lattice(6, 5), TILE, None)
    assert (found.count, found.excluded) == (2, ())


def test_the_lesions_of_several_slides_are_counted_on() -> None:
    first = Lesions(np.array([0, 1, 2]), 2, (2,))
    whole = joined([first, Lesions(np.array([0]), 0), Lesions(np.array([3, 0]), 3, (1, 3))])
    assert (whole.of_instance.tolist(), whole.count, whole.excluded) == ([0, 1, 2, 0, 5, 0], 5, (2, 3, 5))


# Files, recognised by their content.

SQUARE = json.dumps({"type": "Polygon", "coordinates": [rectangle(0, 0, 512, 512).tolist()]})


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_geojson_is_recognised_by_its_content_and_counts_from_the_bounds(
    tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.xml").write_bytes(pack(f"\n {SQUARE}".encode(encoding)))
    for left in (0, 2):
        labels = read_annotation(tmp_path / "a.xml", origin=(left * 256, 0)).tile_labels(lattice(4, 1), TILE)
        assert np.flatnonzero(labels).tolist() == [left, left + 1]
