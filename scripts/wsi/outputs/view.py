# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""One slide as it is drawn and exported: its patches in its own pixels, and where its picture is read from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from scripts.core.errors import InputError
from scripts.core.record import BagResult, PatchCoordinates
from scripts.core.units import Level0Pixels, MicronsPerPixel
from scripts.wsi.features.base import PIXELS, FeatureHeader
from scripts.wsi.slides.folder import SlideFolder, read_facts
from scripts.wsi.slides.slide import best_level, open_slide, read_overview, read_square

OVERVIEW_SIDE = 1024
LEAST_TILE_PIXELS = 32  # a tile with fewer, cut from a thumbnail, shows nothing


@dataclass(frozen=True)
class SlideResult:
    """One slide of a bag's result, n patches."""

    header: FeatureHeader
    source: str  # path of its features
    coords: np.ndarray  # (n, 2)
    scores: np.ndarray  # (n,)
    attention: np.ndarray  # (n,)
    times_average: np.ndarray  # (n,) of the whole bag
    flagged: np.ndarray  # (n,) bool
    truth: np.ndarray | None


def slides_of(result: BagResult) -> list[SlideResult]:
    """Slide by slide, of a bag of patches."""
    places = result.instances
    assert isinstance(places, PatchCoordinates)
    slides = []
    for number, said in enumerate(result.about["slides"]):
        own = places.slide == number
        slides.append(
            SlideResult(
                header=FeatureHeader.from_json({key: value for key, value in said.items() if key != "source"}),
                source=said["source"],
                coords=places.coords[own],
                scores=result.scores[own],
                attention=result.attention[own],
                times_average=result.times_average[own],
                flagged=result.flagged[own],
                truth=None if result.truth is None else result.truth[own],
            )
        )
    return slides


class Thumbnail(NamedTuple):
    pixels: np.ndarray  # (h, w, 3) uint8
    downsample: float  # level-0 pixels of one of its pixels


@dataclass(frozen=True)
class SlideView:
    """The patches of one slide in one unit, and the slide's own file where there is one."""

    coords: np.ndarray  # (n, 2) top-left x, y
    tile: float
    unit: str  # of coords and tile: level-0 pixels, or micrometres where nobody knows how large a pixel is
    mpp: MicronsPerPixel | None  # of level 0
    size: tuple[int, int] | None  # width, height in level-0 pixels
    origin: tuple[int, int]  # level-0 pixels: where a viewer puts its 0, 0
    features: Path  # may hold a thumbnail
    path: Path | None = None  # of the slide
    scanned: tuple[int, int, int, int] | None = None  # left, top, right, bottom; some slides are mostly empty canvas
    outlines: Sequence[np.ndarray] = ()  # (V, 2) polygons of the known truth, in level-0 pixels
    warnings: tuple[str, ...] = ()

    @property
    def in_pixels(self) -> bool:
        return self.unit == PIXELS

    def without_slide(self, why: str) -> SlideView:
        return replace(self, path=None, scanned=None, warnings=(*self.warnings, why))

    @property
    def microns_per_unit(self) -> float | None:
        return self.mpp if self.in_pixels else 1.0

    @property
    def window(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of what is drawn: the picture of the slide, or without one where it has patches."""
        if self.scanned is not None:
            left, top, right, bottom = self.scanned
            return float(left), float(top), float(right), float(bottom)
        if self.size is not None and self.thumbnail is not None:
            return 0.0, 0.0, float(self.size[0]), float(self.size[1])
        if len(self.coords) == 0 and not self.outlines:
            return 0.0, 0.0, self.tile, self.tile
        known = np.concatenate([self.coords, self.coords + self.tile, *self.outlines])  # truth without patches, too
        (left, top), (right, bottom) = known.min(0) - self.tile, known.max(0) + self.tile
        return float(left), float(top), float(right), float(bottom)

    @cached_property
    def thumbnail(self) -> Thumbnail | None:
        """That of the features, else of the slide."""
        if not self.in_pixels:
            return None
        stored = _stored_thumbnail(self.features)
        return _read_thumbnail(self.path) if stored is None and self.path is not None else stored

    def tiles(self, chosen: Sequence[int], pixels: int) -> list[np.ndarray]:
        """(pixels, pixels, 3) uint8 of each chosen patch; none where nothing shows them well enough."""
        if not self.in_pixels:
            return []
        if self.path is not None:
            return _read_tiles(self.path, self.coords[chosen], self.tile, pixels)
        if self.thumbnail is None or self.tile / self.thumbnail.downsample < LEAST_TILE_PIXELS:
            return []
        first = np.rint(self.coords[chosen] / self.thumbnail.downsample).astype(int)
        side = round(self.tile / self.thumbnail.downsample)
        return [self.thumbnail.pixels[y : y + side, x : x + side] for x, y in first.tolist()]


def view_slide(slide: SlideResult, slides: SlideFolder) -> SlideView:
    """As its header says it lies, with its own file where that is found."""
    header = slide.header
    view = SlideView(
        coords=np.asarray(slide.coords, dtype=float),
        tile=float(header.tile),
        unit=header.unit,
        mpp=header.mpp,
        size=header.slide_size,
        origin=header.origin or (0, 0),
        features=Path(slide.source),
    )
    try:
        found = slides.find(header.slide_id, slide.source)
        if found is None or not view.in_pixels:
            return view
        found.require_same(header, view.coords)
    except InputError as error:
        return view.without_slide(str(error))
    (left, top), (width, height) = found.origin, found.scanned
    return replace(view, path=found.path, scanned=(left, top, left + width, top + height))


def file_stems(slides: Sequence[SlideResult]) -> list[str]:
    """A file name for each slide of a bag, from its id, and no two alike."""
    stems: list[str] = []
    for slide in slides:
        stem = slide.header.slide_id.translate(str.maketrans("/\\\0", "___")).lstrip(".") or "slide"
        while stem in stems:
            stem += "_"
        stems.append(stem)
    return stems


def with_warnings(data: Mapping[Hashable, Any], warnings: Sequence[str]) -> dict[Hashable, Any]:
    """The data whose `result` also says these, each once."""
    result: BagResult = data["result"]
    said = result.about.get("warnings", [])
    new = [warning for warning in dict.fromkeys(warnings) if warning not in said]
    if not new:
        return dict(data)
    return {**data, "result": replace(result, about={**result.about, "warnings": [*said, *new]})}


def _stored_thumbnail(features: Path) -> Thumbnail | None:
    """What our own form may hold."""
    try:
        with h5py.File(features) as file:
            if "thumbnail" not in file:
                return None
            return Thumbnail(file["thumbnail"][()], float(file.attrs["thumbnail_downsample"]))
    except (OSError, KeyError):  # another form, or moved since
        return None


def _read_thumbnail(path: Path) -> Thumbnail:
    downsample = max(max(read_facts(path).scanned) / OVERVIEW_SIDE, 1.0)
    with open_slide(path) as slide:
        return Thumbnail(read_overview(slide, downsample), downsample)


def _read_tiles(path: Path, corners: np.ndarray, tile: float, pixels: int) -> list[np.ndarray]:
    with open_slide(path) as slide:
        level = best_level(slide.level_downsamples, Level0Pixels(tile / pixels))
        side = max(round(tile / slide.level_downsamples[level]), 1)
        return [read_square(slide, (x, y), level, side, pixels) for x, y in np.rint(corners).astype(int).tolist()]
