# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""One slide as it is drawn and exported: its patches, and the pixels of the slide."""

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
from scripts.wsi.slides.slide import SlideFolder, best_level, open_slide, read_facts, read_overview, read_square

OVERVIEW_SIDE = 1024
LEAST_TILE_PIXELS = 32  # a tile with fewer, cut from a thumbnail, shows nothing


@dataclass(frozen=True)
class SlideResult:
    """One slide of a bag's result, with n patches."""

    header: FeatureHeader
    source: str  # path of its features
    coords: np.ndarray  # (n, 2)
    scores: np.ndarray  # (n,)
    attention: np.ndarray  # (n,)
    times_average: np.ndarray  # (n,) of the whole bag
    flagged: np.ndarray  # (n,) bool
    truth: np.ndarray | None


def slides_of(result: BagResult) -> list[SlideResult]:
    """Divide the result of a bag of patches by slide."""
    patches = result.instances
    assert isinstance(patches, PatchCoordinates)
    slides = []
    for number, metadata in enumerate(result.about["slides"]):
        own = patches.slide == number
        slides.append(
            SlideResult(
                header=FeatureHeader.from_json({key: value for key, value in metadata.items() if key != "source"}),
                source=metadata["source"],
                coords=patches.coords[own],
                scores=result.scores[own],
                attention=result.attention[own],
                times_average=result.times_average[own],
                flagged=result.flagged[own],
                truth=None if result.truth is None else result.truth[own],
            )
        )
    return slides


class Thumbnail(NamedTuple):
    """A small picture of a whole slide."""

    pixels: np.ndarray  # (h, w, 3) uint8
    downsample: float  # level-0 pixels of one of its pixels


@dataclass(frozen=True)
class SlideView:
    """The patches of one slide in one unit, and the file of the slide if it was found."""

    coords: np.ndarray  # (n, 2) top-left x, y
    tile: float
    unit: str  # of coords and tile: level-0 pixels, or micrometres where the size of a pixel is unknown
    mpp: MicronsPerPixel | None  # of level 0
    size: tuple[int, int] | None  # width, height in level-0 pixels
    origin: tuple[int, int]  # level-0 pixels: where a viewer puts its 0, 0
    features: Path  # may hold a thumbnail
    path: Path | None = None  # of the slide
    scanned: tuple[int, int, int, int] | None = (
        None  # left, top, right, bottom; the rest of a slide may be empty canvas
    )
    outlines: Sequence[np.ndarray] = ()  # (V, 2) polygons of the annotation, in level-0 pixels
    warnings: tuple[str, ...] = ()

    def without_slide(self, warning: str) -> "SlideView":
        """Return the view without the file of the slide, and with a warning that says why."""
        return replace(self, path=None, scanned=None, warnings=(*self.warnings, warning))

    @property
    def in_pixels(self) -> bool:
        """Whether coords and tile are in level-0 pixels."""
        return self.unit == PIXELS

    @property
    def microns_per_unit(self) -> float | None:
        """Micrometres of one unit of coords, None if unknown."""
        return self.mpp if self.in_pixels else 1.0

    @property
    def window(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of what is drawn: all of the slide, or without its picture where it has patches."""
        if self.scanned is not None:
            left, top, right, bottom = self.scanned
            return float(left), float(top), float(right), float(bottom)
        if self.size is not None and self.thumbnail is not None:
            return 0.0, 0.0, float(self.size[0]), float(self.size[1])
        if len(self.coords) == 0 and not self.outlines:
            return 0.0, 0.0, self.tile, self.tile
        known = np.concatenate(
            [self.coords, self.coords + self.tile, *self.outlines]
        )  # an annotation may have no patches
        (left, top), (right, bottom) = known.min(0) - self.tile, known.max(0) + self.tile
        return float(left), float(top), float(right), float(bottom)

    @cached_property
    def thumbnail(self) -> Thumbnail | None:
        """The one stored with the features, else one made of the slide."""
        if not self.in_pixels:
            return None
        stored = _stored_thumbnail(self.features)
        return _read_thumbnail(self.path) if stored is None and self.path is not None else stored

    def tiles(self, chosen: Sequence[int], pixels: int) -> list[np.ndarray]:
        """Return (pixels, pixels, 3) uint8 of each chosen patch; none if no picture shows them well enough."""
        if not self.in_pixels:
            return []
        if self.path is not None:
            return _read_patches(self.path, self.coords[chosen], self.tile, pixels)
        if self.thumbnail is None or self.tile / self.thumbnail.downsample < LEAST_TILE_PIXELS:
            return []
        first = np.rint(self.coords[chosen] / self.thumbnail.downsample).astype(int)
        side = round(self.tile / self.thumbnail.downsample)
        return [self.thumbnail.pixels[y : y + side, x : x + side] for x, y in first.tolist()]


def view_slide(slide: SlideResult, slides: SlideFolder) -> SlideView:
    """Return the view of a slide, with its file if that is in the folder; a warning says why it cannot be used."""
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
    """Return a file name without suffix for each slide of a bag, made from its id; no two are the same."""
    stems: list[str] = []
    for slide in slides:
        stem = slide.header.slide_id.translate(str.maketrans("/\\\0", "___")).lstrip(".") or "slide"
        while stem in stems:
            stem += "_"
        stems.append(stem)
    return stems


def with_warnings(data: Mapping[Hashable, Any], warnings: Sequence[str]) -> dict[Hashable, Any]:
    """Return the data with these warnings added to its `result`, each once."""
    result: BagResult = data["result"]
    known = result.about.get("warnings", [])
    if set(warnings) <= set(known):
        return dict(data)
    about = {**result.about, "warnings": list(dict.fromkeys([*known, *warnings]))}
    return {**data, "result": replace(result, about=about)}


def _stored_thumbnail(features: Path) -> Thumbnail | None:
    """Read the thumbnail that a feature file of our own format may hold."""
    try:
        with h5py.File(features) as file:
            if "thumbnail" not in file:
                return None
            return Thumbnail(file["thumbnail"][()], float(file.attrs["thumbnail_downsample"]))
    except (OSError, KeyError):  # another format, or moved since
        return None


def _read_thumbnail(path: Path) -> Thumbnail:
    downsample = max(max(read_facts(path).scanned) / OVERVIEW_SIDE, 1.0)
    with open_slide(path) as slide:
        return Thumbnail(read_overview(slide, downsample), downsample)


def _read_patches(path: Path, corners: np.ndarray, tile: float, pixels: int) -> list[np.ndarray]:
    with open_slide(path) as slide:
        level = best_level(slide.level_downsamples, Level0Pixels(tile / pixels))
        side = max(round(tile / slide.level_downsamples[level]), 1)
        return [read_square(slide, (x, y), level, side, pixels) for x, y in np.rint(corners).astype(int).tolist()]
