# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The patches of a slide, and the regions they form, as gzipped GeoJSON for QuPath."""

import gzip
import hashlib
import json
import logging
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from monai.transforms import Transform

from scripts.core.errors import InputError
from scripts.core.files import whole_file
from scripts.core.record import RESEARCH_USE, BagResult
from scripts.core.scoring import EVIDENCE, INSTANCE, SIGNED
from scripts.outputs.drawing import called, score_words
from scripts.outputs.scores import normalisation
from scripts.outputs.writers import with_warnings
from scripts.wsi.features.base import ADOPT, MICROMETRES
from scripts.wsi.outputs.view import TIMES_AVERAGE, SlideResult, file_stems, slides_of, whole_number

FLAGGED_TILE = {"name": "flagged", "color": [214, 39, 40]}
OTHER_TILE = {"name": "not flagged", "color": [127, 127, 127]}
REGION_COLOUR = [214, 39, 40]
MOST_REGIONS = 50  # each an annotation of its own: a list that a person can go through
POINTS_AT_ONCE = 50_000  # of GEOS, which takes far more memory for one than two numbers
SAME_EDGE = 1.0  # level-0 pixels: tiles whose size is no whole number lie a rounding apart
TILES_PER_TEXT = 5000  # tiles that are text in memory at a time

logger = logging.getLogger(__name__)


class SaveGeoJSONd(Transform):
    """Write `output_dir/<bag_id>/tiles.geojson.gz`, or `<slide_id>.geojson.gz` for each of several slides.

    Every patch is a tile with its measurements, unless there are too many for QuPath. Flagged patches are merged into
    regions, which are annotations, the largest first; beyond fifty the smallest are one annotation together. A slide
    called negative has no region. A slide with coordinates in micrometres and an unknown pixel size is skipped with a
    warning.

    Args:
        output_dir: folder of the results.
        regions_above: a flagged patch is in a region above so many times the average attention, or so many times the
            evidence that it is flagged above; of those flagged by their own logit all are.
        most_tiles: of a slide of more patches its regions alone are written.
    """

    def __init__(self, output_dir: str, regions_above: float = 2.0, most_tiles: int = 20_000) -> None:
        self.output_dir = Path(output_dir)
        self.regions_above = regions_above
        self.most_tiles = whole_number(most_tiles, "most_tiles", 0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["bag_result"]
        slides = slides_of(result)
        warnings: list[str] = []
        for stem, slide in zip(file_stems(slides, "tiles"), slides, strict=True):
            if slide.in_pixels:
                path, count = self.output_dir / result.bag_id / f"{stem}.geojson.gz", len(slide.ranks)
                if count > self.most_tiles:
                    why = f"{count} patches are too many for QuPath; --most_tiles {count} writes them"
                    logger.info("%s of %s holds regions alone: %s", path.name, result.bag_id, why)
                write_geojson(path, slide, self.regions_above, with_tiles=count <= self.most_tiles)
            else:
                unit = slide.header.unit
                way = "give --slides or --slide_mpp" if unit == MICROMETRES else ADOPT
                text = f"no GeoJSON of {slide.header.slide_id}: its coordinates are {unit} and its pixels"
                warnings.append(f"{text} are of unknown size; {way}")
        return with_warnings(data, warnings)


def write_geojson(path: Path, slide: SlideResult, regions_above: float, with_tiles: bool = True) -> None:
    """Write regions, and tiles if asked for, whole or not at all; the same result gives the same bytes."""
    with (
        whole_file(path) as beside,
        beside.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as file,  # without name and time: the same bytes in each run
    ):
        file.write(b'{"type":"FeatureCollection","features":[')
        separator = b"\n"
        for block in _feature_texts(slide, regions_above, with_tiles):
            file.write(separator + block.encode())
            separator = b",\n"
        file.write(b"\n]}\n")


class Region(NamedTuple):
    """An area of patches that stand out."""

    area: shapely.Geometry  # level-0 pixels
    tiles: np.ndarray  # numbers of the patches in it


def regions(coords: np.ndarray, tile: float, above: np.ndarray) -> list[Region]:
    """Return the areas that patches at coords (n, 2) with `above` (n,) cover together, the most patches first."""
    chosen = np.flatnonzero(above)
    if len(chosen) == 0:
        return []
    union = shapely.disjoint_subset_union_all(_rows_of_tiles(coords[chosen], tile))
    areas = shapely.get_parts(shapely.orient_polygons(shapely.simplify(union, 0.0)))
    tree, parts = shapely.STRtree(areas), []
    for some in np.array_split(np.arange(len(chosen)), 1 + len(chosen) // POINTS_AT_ONCE):
        centres = shapely.points(coords[chosen[some]] + tile / 2)
        parts.append(tree.query(centres, predicate="within") + np.array([[some[0]], [0]]))
    tile_of, area_of = np.concatenate(parts, axis=1)
    members = np.split(chosen[tile_of[np.argsort(area_of, kind="stable")]], np.bincount(area_of).cumsum()[:-1])
    found = [Region(area, np.sort(tiles)) for area, tiles in zip(areas, members, strict=True)]
    found.sort(key=lambda region: (-len(region.tiles), region.tiles[0]))
    if len(found) <= MOST_REGIONS:
        return found
    rest = found[MOST_REGIONS - 1 :]
    together = shapely.multipolygons([region.area for region in rest])
    return [*found[: MOST_REGIONS - 1], Region(together, np.sort(np.concatenate([region.tiles for region in rest])))]


def _rows_of_tiles(corners: np.ndarray, tile: float) -> np.ndarray:
    """Return rectangles that cover the tiles, one for each run of neighbours: far fewer for GEOS to unite."""
    left, top = corners.T
    right, bottom = (_snapped(edge + tile, edge) for edge in (left, top))
    order = np.lexsort((left, bottom, top))
    left, top, right, bottom = left[order], top[order], right[order], bottom[order]
    starts = np.ones(len(left), dtype=bool)
    starts[1:] = (top[1:] != top[:-1]) | (bottom[1:] != bottom[:-1]) | (left[1:] > right[:-1])
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(left)) - 1
    return shapely.box(left[first], top[first], right[last], bottom[last])


def _snapped(edges: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the edges, each moved onto the nearest of the others that is within a rounding error."""
    known = np.unique(others)
    nearest = known[np.searchsorted((known[1:] + known[:-1]) / 2, edges)]
    return np.where(np.abs(nearest - edges) <= SAME_EDGE, nearest, edges)


def _feature_texts(slide: SlideResult, regions_above: float, with_tiles: bool) -> Iterator[str]:
    """Give the features as text, regions first; their UUIDs are the same in each run."""
    if not all(np.isfinite(values).all() for values in slide.of_patches.values()):
        raise InputError(f"the network gives no numbers for {slide.header.slide_id}: check its weights")
    digest = hashlib.sha256(f"{slide.bag.bag_id}/{slide.header.slide_id}".encode(errors="replace")).hexdigest()
    # version 8 is a scheme of one's own: all begin alike and end in a number, as hashing 100,000 would take long
    identity = f"{digest[:8]}-{digest[8:12]}-8{digest[12:15]}-8{digest[15:18]}-%012x"
    metadata = _metadata(slide, regions_above)
    count, score = len(slide.ranks), f"score ({slide.bag.score_name})"
    above = slide.flagged & (_multiples(slide) > regions_above)
    for number, region in enumerate(regions(slide.coords.astype(float), slide.header.tile, above)):
        properties = {**_region_properties(number, region, slide), "metadata": metadata}
        shifted = shapely.transform(region.area, lambda points: np.round(points - slide.origin, 2))
        geometry = shapely.geometry.mapping(shifted)
        feature = {"type": "Feature", "id": identity % (count + number), "geometry": geometry, "properties": properties}
        yield json.dumps(feature, ensure_ascii=False)
    for start in range(0, count if with_tiles else 0, TILES_PER_TEXT):
        yield _tile_features(identity, slide, range(start, min(start + TILES_PER_TEXT, count)), score)


def _multiples(slide: SlideResult) -> np.ndarray:
    """How many times a patch has what it is flagged above; (n,)."""
    result = slide.bag
    if result.score_name == EVIDENCE and result.flag_above:
        return slide.of_patches["score"] / result.flag_above
    return np.full(len(slide.ranks), np.inf) if result.score_name in SIGNED else slide.times_average


def _region_properties(number: int, region: Region, slide: SlideResult) -> dict[str, Any]:
    score_name = slide.bag.score_name
    measurements: dict[str, float] = {"tiles": len(region.tiles)}
    measured = {f"score ({score_name})": slide.of_patches["score"], TIMES_AVERAGE: slide.times_average}
    for name, values in measured.items():
        of_region = values[region.tiles]
        measurements |= {f"mean {name}": float(of_region.mean()), f"highest {name}": float(of_region.max())}
    if slide.header.mpp is not None:
        measurements["area mm²"] = region.area.area * slide.header.mpp**2 / 1e6
    if slide.truth is not None:
        measurements["annotated tiles"] = int(slide.truth[region.tiles].sum())
    what = score_words(slide.bag) if score_name in SIGNED else "attention"
    return {
        "objectType": "annotation",
        "name": f"region {number + 1}" if region.area.geom_type == "Polygon" else "smaller regions",
        "classification": {"name": f"high {what}", "color": REGION_COLOUR},
        "measurements": {key: round(value, 6) for key, value in measurements.items()},
    }


def _tile_features(identity: str, slide: SlideResult, block: range, score: str) -> str:
    """Return a block of tiles as text, by one template: json.dumps would take three times as long."""
    told = {name.replace("_", " "): values for name, values in slide.of_patches.items()}
    del told["attention"]  # of which 1/N of a slide says little
    measured = {score: told.pop("score"), TIMES_AVERAGE: slide.times_average, **told}
    if slide.truth is not None:
        measured["annotated"] = slide.truth
    names = ",".join(f'"{name}":%.7g' for name in measured)
    feature = (
        f'{{"type":"Feature","id":"{identity}","geometry":{{"type":"Polygon","coordinates":'
        "[[[%.10g,%.10g],[%.10g,%.10g],[%.10g,%.10g],[%.10g,%.10g],[%.10g,%.10g]]]},"
        f'"properties":{{"objectType":"tile","classification":%s,"measurements":{{{names}}}}}}}'
    )
    part = slice(block.start, block.stop)
    near = slide.coords[part] - np.array(slide.origin, dtype=float)
    (left, top), (right, bottom) = np.round(near, 2).T.tolist(), np.round(near + slide.header.tile, 2).T.tolist()
    kinds = [json.dumps(kind) for kind in (OTHER_TILE, FLAGGED_TILE)]
    classification = [kinds[flagged] for flagged in slide.flagged[part].tolist()]
    rows = zip(
        block, left, top, right, top, right, bottom, left, bottom, left, top, classification,
        *(values[part].tolist() for values in measured.values()), strict=True,
    )  # fmt: skip
    return ",\n".join(map(feature.__mod__, rows))


def _metadata(slide: SlideResult, regions_above: float) -> dict[str, str]:
    """Return the texts that QuPath shows with a region."""
    result = slide.bag
    of_what = "that evidence" if result.score_name == EVIDENCE else "the average"
    metadata = {
        "normalisation": normalisation(result),
        "score": result.score_name,
        "flagged above": result.flag_rule,
        "region": "flagged tiles" + ("" if result.score_name == INSTANCE else f" above {regions_above:g} × {of_what}"),
        "bag": result.bag_id,
        "slide": slide.header.slide_id,
        "called": called(result),
        "note": RESEARCH_USE,
    }
    if result.model is not None:
        metadata["model"] = " ".join(filter(None, result.model[:3]))  # name, version, sha256
    return metadata
