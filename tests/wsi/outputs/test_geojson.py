# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""GeoJSON as QuPath reads it: asked of another parser, and each tile and region of an oracle that is not shapely."""

import dataclasses
import json
import time
import tracemalloc
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geojson
import numpy as np
import openslide
import pytest
import shapely
from scipy.ndimage import gaussian_filter, label

from scripts.core.errors import InputError
from scripts.core.record import BagResult, Classes, Model
from scripts.wsi.features.files import open_features
from scripts.wsi.outputs.geojson import MOST_REGIONS, TIMES_AVERAGE, SaveGeoJSONd, regions
from scripts.wsi.outputs.view import slides_of, view_slide
from scripts.wsi.slides.slide import SlideFolder
from tests.outputs.results import strict_json, told
from tests.wsi.outputs.slide_results import TILE, bag, grid, header
from tests.wsi.slide_files import extract, tissue
from tests.wsi.trade_slides import write_scn

RNG = np.random.default_rng(0)
HIGH, LOW = 8.0, 0.5
MOST_BYTES = 30 * 2**20  # of 100,000 tiles, whose text has 45


def saved(folder: Path, result: BagResult, **given: Any) -> dict[str, Any]:
    SaveGeoJSONd(str(folder), **given)({"bag_result": result})
    return strict_json(folder / result.bag_id / "tiles.geojson.gz")


def of_type(collection: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [feature for feature in collection["features"] if feature["properties"]["objectType"] == kind]


def marked(shape: Sequence[str], mpp: float | None = 0.25, **given: Any) -> BagResult:
    """A lattice of patches drawn in text: # has much attention, . has little."""
    high = np.array([list(row) for row in shape]) == "#"
    rows, columns = high.shape
    return bag(grid(columns, rows), np.where(high.ravel(), HIGH, LOW), header(high.size, mpp=mpp), **given)


def test_it_is_geojson_as_qupath_reads_it_of_a_square_with_its_numbers_for_each_patch(tmp_path: Path) -> None:
    """What qupath.lib.io.PathObjectTypeAdapters asks of each: an object of numbers, texts, three whole colours."""
    coords = grid(40, 30)[RNG.random(1200) < 0.8]
    result = bag(coords, RNG.exponential(size=len(coords)) ** 2)
    written = saved(tmp_path, result)
    collection = geojson.loads(json.dumps(written))
    assert isinstance(collection, geojson.FeatureCollection)
    assert collection.is_valid
    assert set(written) == {"type", "features"}  # no member that GeoJSON does not know
    for feature in written["features"]:
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert (uuid.UUID(feature["id"]).version, uuid.UUID(feature["id"]).variant) == (8, uuid.RFC_4122)
        properties = feature["properties"]
        assert properties["objectType"] in ("tile", "annotation")
        assert set(properties["classification"]) == {"name", "color"}
        assert [type(channel) for channel in properties["classification"]["color"]] == [int] * 3
        assert all(isinstance(number, (int, float)) for number in properties["measurements"].values())
        assert all(isinstance(text, str) for text in properties.get("metadata", {}).values())
    assert len({feature["id"] for feature in written["features"]}) == len(written["features"])
    tiles = of_type(written, "tile")
    rings = np.array([tile["geometry"]["coordinates"] for tile in tiles])[:, 0]  # (N, 5, 2)
    corners = np.array([[0, 0], [TILE, 0], [TILE, TILE], [0, TILE], [0, 0]])
    np.testing.assert_array_equal(rings, coords[:, None] + corners)
    measured = [tile["properties"]["measurements"] for tile in tiles]
    np.testing.assert_allclose([each[TIMES_AVERAGE] for each in measured], result.times_average, rtol=1e-6)
    np.testing.assert_allclose([each["score (attention)"] for each in measured], result.scores, rtol=1e-6)
    named = [tile["properties"]["classification"]["name"] for tile in tiles]
    assert named == ["flagged" if flagged else "not flagged" for flagged in result.flagged]


@pytest.mark.parametrize(("names", "verdict"), [((), "positive, probability 0.90"), ("abc", "b, probability 0.70")])
def test_a_region_states_what_its_numbers_mean_and_what_it_is_not_for(
    tmp_path: Path, names: Sequence[str], verdict: str
) -> None:
    classes = Classes(tuple(names), np.array([0.1, 0.7, 0.2]), negative="a") if names else None
    result = marked(["#..."], classes=classes, model=Model("wsi", "1.2.3", "ab" * 32))
    assert of_type(saved(tmp_path, result), "annotation")[0]["properties"]["metadata"] == {
        "normalisation": "attention × number of patches: 1 = the average of the slide",
        "score": "attention",
        "flagged above": "attention 1/4, in a positive bag",
        "region": "flagged tiles above 2 × the average",
        "bag": "bag 7",
        "slide": "slide 7",
        "called": verdict,
        "note": "research use only, not for diagnosis",
        "model": f"wsi 1.2.3 {'ab' * 32}",
    }


def test_of_a_slide_with_bounds_tiles_and_map_lie_where_the_scan_does(tmp_path: Path) -> None:
    """From a slide to its features, the window of its map and the GeoJSON, which counts from the bounds."""
    image, (left, top) = tissue(300, 400), (200, 150)
    scan = write_scn(tmp_path / "slides/a.scn", image, mpp=0.5, canvas=(900, 700), corner=(left, top))
    extract(tmp_path)
    with open_features(tmp_path / "features/a.h5") as file:
        coords, about = file.coords, file.header
    result = bag(coords, np.ones(len(coords)), about, source=str(tmp_path / "features/a.h5"))
    view = view_slide(slides_of(result)[0], SlideFolder(str(scan.parent)))
    assert (view.window, view.warnings) == ((left, top, left + 400, top + 300), ())
    tiles = of_type(saved(tmp_path / "results", result), "tile")
    corners = np.array([tile["geometry"]["coordinates"][0][0] for tile in tiles])
    np.testing.assert_array_equal(corners, coords - [left, top])
    with openslide.OpenSlide(scan) as slide:  # as QuPath reads it: the bounds alone
        bounds = np.asarray(slide.read_region((left, top), 0, (400, 300)).convert("RGB"))
    inner = next(number for number, (x, y) in enumerate(corners) if min(x, y) >= 0)
    x, y = corners[inner]
    np.testing.assert_array_equal(view.tiles([inner], 64)[0], bounds[y : y + 64, x : x + 64])


@pytest.mark.parametrize("mpp", [0.25, None])
def test_tiles_side_by_side_are_one_region_with_their_numbers_and_holes(tmp_path: Path, mpp: float | None) -> None:
    shape = ["##...###..", "#....#.#..", ".....###..", "..........", "....#.....", "..........", ".........."]
    result = marked(shape, mpp, truth=np.array([1, 1] + [0] * 68))
    ring, corner, single = of_type(saved(tmp_path, result), "annotation")
    high = float(result.times_average.max())
    numbers = {"tiles": 3, f"mean {TIMES_AVERAGE}": high, f"highest {TIMES_AVERAGE}": high, "annotated tiles": 2}
    score = float(result.scores.max())
    numbers |= {"mean score (attention)": score, "highest score (attention)": score}
    if mpp is not None:
        numbers["area mm²"] = 3 * (TILE * mpp / 1000) ** 2
    assert corner["properties"]["measurements"] == pytest.approx(numbers, abs=1e-5)
    assert single["properties"]["measurements"]["annotated tiles"] == 0
    assert [each["properties"]["name"] for each in (ring, corner, single)] == ["region 1", "region 2", "region 3"]
    wanted = shapely.Polygon(np.array([[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]) * TILE)
    assert shapely.geometry.shape(corner["geometry"]).equals(wanted)
    assert shapely.geometry.shape(single["geometry"]).equals(shapely.box(4 * TILE, 4 * TILE, 5 * TILE, 5 * TILE))
    outer, hole = map(shapely.LinearRing, ring["geometry"]["coordinates"])
    assert [shapely.Polygon(each).area for each in (outer, hole)] == [9 * TILE**2, TILE**2]
    assert (outer.is_ccw, hole.is_ccw) == (True, False)  # as RFC 7946 wants it


@pytest.mark.parametrize("pitch", [512, 506.7, 113.3333])
def test_regions_are_those_of_the_lattice_also_where_tiles_are_rounded_apart(pitch: float) -> None:
    """The oracle is scipy's labelling of the lattice: what shares an edge is one."""
    above = np.random.default_rng(3).random((60, 70)) < 0.2
    coords = grid(70, 60, pitch)
    labels, count = label(above)
    found = regions(coords.astype(float), pitch, above.ravel())
    sizes = np.sort(np.bincount(labels.ravel())[1:])[::-1]
    assert count > MOST_REGIONS == len(found)
    assert [len(region.tiles) for region in found[:-1]] == sizes[: MOST_REGIONS - 1].tolist()
    for region in found[:-1]:
        assert len(np.unique(labels.ravel()[region.tiles])) == 1
        assert region.area.area == pytest.approx(len(region.tiles) * pitch**2, rel=0.02)
    assert len(found[-1].tiles) == sizes[MOST_REGIONS - 1 :].sum()
    assert found[-1].area.geom_type == "MultiPolygon"
    together = np.concatenate([region.tiles for region in found])
    np.testing.assert_array_equal(np.sort(together), np.flatnonzero(above))


@pytest.mark.parametrize("times", [1.5, 4])
def test_tiles_that_overlap_are_united(times: float) -> None:
    """The oracle is a raster: an overlap is counted once."""
    above = np.random.default_rng(4).random((30, 30)) < 0.05
    coords, unit = grid(30, 30, 64), 32
    covered = np.zeros((30 * 2 + 8, 30 * 2 + 8), dtype=bool)
    side = round(64 * times) // unit
    for row, column in np.argwhere(above):
        covered[2 * row : 2 * row + side, 2 * column : 2 * column + side] = True
    found = regions(coords.astype(float), 64 * times, above.ravel())
    assert len(found) == label(covered)[1]
    assert sum(region.area.area for region in found) == pytest.approx(covered.sum() * unit**2)
    assert all(region.area.is_valid for region in found)
    np.testing.assert_array_equal(np.sort(np.concatenate([region.tiles for region in found])), np.flatnonzero(above))


def test_regions_are_of_flagged_tiles_above_the_threshold_of_the_user(tmp_path: Path) -> None:
    result = bag(grid(4, 1), [4.0, 2.0, 1.2, 0.8])  # times the average: 2, 1, 0.6, 0.4
    for probability, above, sizes in ((0.9, 1.9, [1]), (0.9, 2.0, []), (0.2, 1.9, [])):
        written = saved(tmp_path, dataclasses.replace(result, probability=probability), regions_above=above)
        assert [each["properties"]["measurements"]["tiles"] for each in of_type(written, "annotation")] == sizes
        assert len(of_type(written, "tile")) == 4


@pytest.mark.parametrize(
    ("score", "above", "sizes", "name", "said"),
    [
        ("instance", 9.0, [2, 1], "high own logit", "flagged tiles"),  # all that would alone be called positive
        ("evidence", 1.0, [2, 1], "high evidence", "flagged tiles above 1 × that evidence"),
        ("evidence", 2.0, [1], "high evidence", "flagged tiles above 2 × that evidence"),
    ],
)
def test_regions_and_tiles_are_of_the_score_that_flags(
    tmp_path: Path, score: str, above: float, sizes: list[int], name: str, said: str
) -> None:
    values = np.array([0.5, 0.3, -2.0, 0.25, 0.1], dtype=np.float32)
    given = told(bag(grid(5, 1), [1.0, 1, 9, 1, 1]), scores=values, score_name=score, flag_above=0.2)
    written = saved(tmp_path, given, regions_above=above)
    found = [each["properties"] for each in of_type(written, "annotation")]
    assert [each["measurements"]["tiles"] for each in found] == sizes
    assert {each["classification"]["name"] for each in found} == {name}
    assert {each["metadata"]["region"] for each in found} == {said}
    assert {each["metadata"]["flagged above"] for each in found} == {given.flag_rule}
    tiles = [each["properties"] for each in of_type(written, "tile")]
    assert [tile["classification"]["name"] == "flagged" for tile in tiles] == [True, True, False, True, False]
    measured = {
        key.replace(" ", "_"): [tile["measurements"][key] for tile in tiles] for key in tiles[0]["measurements"]
    }
    np.testing.assert_allclose(measured[f"score_({score})"], values, rtol=1e-6)
    for key in ("attention_logit", "evidence", "instance_logit", "leave_one_out"):
        np.testing.assert_allclose(measured[key], given.of_instances[key], rtol=1e-6)


@pytest.mark.parametrize("origin", [(200, 300), None])
def test_the_bounds_are_taken_off_and_fractions_of_a_pixel_kept(tmp_path: Path, origin: tuple[int, int] | None) -> None:
    coords = np.array([[500.25, 600.5], [2000, 2000]]) + (origin or (0, 0))
    about = header(2, pitch=512.82, origin=origin)
    written = saved(tmp_path, bag(coords, [HIGH, LOW], about), regions_above=1)
    for feature in written["features"][:2]:  # the region, and its tile
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert (ring.min(axis=0).tolist(), ring.max(axis=0).tolist()) == ([500.25, 600.5], [1013.07, 1113.32])


def test_micrometres_without_a_slide_are_left_out_with_a_warning_and_what_is_no_number_is_refused(
    tmp_path: Path,
) -> None:
    for unit, way in (
        ("micrometres", "; give --slides or --slide_mpp"),
        ("tiles", "adopt FOLDER --coords_unit MICROMETRES"),
    ):
        result = bag(grid(4, 1) * 0.5, [9, 1, 1, 1], header(4, unit=unit, mpp=None))
        (warning,) = SaveGeoJSONd(str(tmp_path))({"bag_result": result})["bag_result"].about["warnings"]
        assert list(tmp_path.iterdir()) == []
        assert warning.startswith(
            f"no GeoJSON of slide 7: its coordinates are {unit} and its pixels are of unknown size; "
        )
        assert warning.endswith(way)
    result = dataclasses.replace(marked(["#..."]), scores=np.array([1, np.nan, 1, 1], dtype=np.float32))
    with pytest.raises(InputError, match=r"^the network gives no numbers for slide 7: check its weights$"):
        SaveGeoJSONd(str(tmp_path))({"bag_result": result})
    assert not list(tmp_path.rglob("*.gz"))


def test_of_more_tiles_than_are_asked_for_the_regions_alone_are_written_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = marked(["##..", "...."])
    caplog.set_level("INFO")
    whole = saved(tmp_path, result, most_tiles=8)
    assert len(of_type(whole, "tile")) == 8
    assert caplog.messages == []
    assert saved(tmp_path, result, most_tiles=7)["features"] == of_type(whole, "annotation")
    text = (
        "tiles.geojson.gz of bag 7 holds regions alone: 8 patches are too many for QuPath; --most_tiles 8 writes them"
    )
    assert caplog.messages == [text]
    with pytest.raises(InputError, match=r"^most_tiles is 'all': give --most_tiles a whole number"):
        SaveGeoJSONd(str(tmp_path), most_tiles="all")  # type: ignore[arg-type]


def test_each_slide_of_a_bag_has_a_file_of_its_own(tmp_path: Path) -> None:
    result = bag([grid(3, 1), grid(2, 2), grid(0, 1)], np.arange(1.0, 8))
    SaveGeoJSONd(str(tmp_path), regions_above=1)({"bag_result": result})
    files = sorted((tmp_path / "bag 7").iterdir())
    assert [path.name for path in files] == [f"slide {number}.geojson.gz" for number in range(3)]
    first, second, empty = (strict_json(path) for path in files)
    assert empty == {"type": "FeatureCollection", "features": []}
    both = [*first["features"], *second["features"]]
    assert len({feature["id"] for feature in both}) == len(both)
    metadata = of_type(second, "annotation")[0]["properties"]["metadata"]
    assert metadata["normalisation"].endswith("1 = the average of all 3 slides of the bag")
    measured = [tile["properties"]["measurements"][TIMES_AVERAGE] for tile in of_type(second, "tile")]
    np.testing.assert_allclose(measured, result.times_average[3:], rtol=1e-6)


def test_the_same_result_gives_the_same_bytes_and_another_bag_other_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = marked(["#..."])
    first = saved(tmp_path, result)
    content = (tmp_path / "bag 7" / "tiles.geojson.gz").read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)  # gzip may hold the hour
    saved(tmp_path, result)
    assert (tmp_path / "bag 7" / "tiles.geojson.gz").read_bytes() == content
    other = saved(tmp_path, dataclasses.replace(result, bag_id="bag 8"))
    assert not {feature["id"] for feature in first["features"]} & {feature["id"] for feature in other["features"]}


@pytest.mark.slow
def test_a_hundred_thousand_tiles_take_little_time_and_memory(tmp_path: Path) -> None:
    field = gaussian_filter(np.random.default_rng(0).normal(size=(250, 400)), 2)
    truth = (field > 0).ravel().astype(int)
    result = bag(grid(400, 250), np.exp(2 * field / field.std()).ravel(), truth=truth)
    save = SaveGeoJSONd(str(tmp_path), most_tiles=100_000)
    start = time.process_time()  # of this process alone: the machine may be busy
    save({"bag_result": result})
    assert time.process_time() - start < 3
    tracemalloc.start()
    save({"bag_result": result})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_BYTES
    assert 2 < len(of_type(strict_json(tmp_path / "bag 7" / "tiles.geojson.gz"), "annotation")) <= MOST_REGIONS
