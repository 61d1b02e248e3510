# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""One slide as it is drawn and exported: its patches, and the pixels of the slide."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import h5py
import numpy as np

from scripts.core.errors import InputError
from scripts.core.hdf5 import require_all_own
from scripts.core.record import BagResult, PatchCoordinates
from scripts.core.units import Level0Pixels
from scripts.outputs.drawing import ranks
from scripts.wsi.features.base import PIXELS, FeatureHeader
from scripts.wsi.slides.slide import SlideFacts, SlideFolder, best_level, open_slide, read_overview, read_square

OVERVIEW_SIDE = 1024
LEAST_TILE_PIXELS = 32  # a tile with fewer, cut from a thumbnail, shows nothing


@dataclass(frozen=True)
class SlideResult:
    """One slide of a bag's result, with n patches."""

    header: FeatureHeader
    source: str  # path of its features
    coords: np.ndarray  # (n, 2)
    of_patches: Mapping[str, np.ndarray]  # (n,) each, as of BagResult.of_instances
    times_average: np.ndarray  # (n,) of the whole bag
    ranks: np.ndarray  # (n,) by which patches are shown, the highest first
    flagged: np.ndarray  # (n,) bool
    truth: np.ndarray | None

    @property
    def in_pixels(self) -> bool:
        """Whether coords are level-0 pixels; else micrometres, and the size of a pixel is unknown."""
        return self.header.unit == PIXELS

    @property
    def origin(self) -> tuple[int, int]:
        """The level-0 pixel that QuPath takes for 0, 0: (0, 0) for most slides."""
        return self.header.origin or (0, 0)


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
                of_patches={name: values[own] for name, values in result.of_instances.items()},
                ranks=ranks(result)[own],
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
    """One slide of a result with its pictures."""

    slide: SlideResult
    facts: SlideFacts | None = None  # of the file of the slide, if it was found and is of these features
    outlines: Sequence[np.ndarray] = ()  # (V, 2) polygons of the annotation, in level-0 pixels
    warnings: tuple[str, ...] = ()

    @property
    def window(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of what is drawn: all of the slide, or without its picture where it has patches."""
        coords, tile, size = self.slide.coords, self.slide.header.tile, self.slide.header.slide_size
        if self.facts is not None:  # the rest of a slide may be empty canvas
            (left, top), (width, height) = self.facts.origin, self.facts.scanned
            return left, top, left + width, top + height
        if size is not None and self.thumbnail is not None:
            return 0, 0, *size
        if len(coords) == 0 and not self.outlines:
            return 0, 0, tile, tile
        known = np.concatenate([coords, coords + tile, *self.outlines])  # an annotation may have no patches
        (left, top), (right, bottom) = known.min(0) - tile, known.max(0) + tile
        return left, top, right, bottom

    @cached_property
    def thumbnail(self) -> Thumbnail | None:
        """The one stored with the features, else one made of the slide."""
        if not self.slide.in_pixels:
            return None
        # of another format, moved since, or with a picture that lies in another file
        with suppress(OSError, KeyError, InputError), h5py.File(self.slide.source) as file:
            require_all_own(self.slide.source, file)
            return Thumbnail(file["thumbnail"][()], float(file.attrs["thumbnail_downsample"]))
        if self.facts is None:
            return None
        downsample = max(max(self.facts.scanned) / OVERVIEW_SIDE, 1.0)
        with open_slide(self.facts.path) as opened:
            return Thumbnail(read_overview(opened, downsample), downsample)

    def tiles(self, chosen: Sequence[int], pixels: int) -> list[np.ndarray]:
        """Return (pixels, pixels, 3) uint8 of each chosen patch; none if no picture shows them well enough."""
        corners, tile = self.slide.coords[chosen], self.slide.header.tile
        if self.facts is not None:
            with open_slide(self.facts.path) as opened:
                level = best_level(opened.level_downsamples, Level0Pixels(tile / pixels))
                side = max(round(tile / opened.level_downsamples[level]), 1)
                places = np.rint(corners).astype(int).tolist()
                return [read_square(opened, (x, y), level, side, pixels) for x, y in places]
        if self.thumbnail is None or tile / self.thumbnail.downsample < LEAST_TILE_PIXELS:
            return []
        side = round(tile / self.thumbnail.downsample)
        places = np.rint(corners / self.thumbnail.downsample).astype(int).tolist()
        return [self.thumbnail.pixels[y : y + side, x : x + side] for x, y in places]


def view_slide(slide: SlideResult, slides: SlideFolder) -> SlideView:
    """Return the view of a slide, with its file if that is in the folder; a warning says why it cannot be used."""
    try:
        found = slides.find(slide.header.slide_id, slide.source)
        if found is None or not slide.in_pixels:
            return SlideView(slide)
        found.require_same(slide.header, slide.coords)
    except InputError as error:
        return SlideView(slide, warnings=(str(error),))
    return SlideView(slide, found)


def file_stems(slides: Sequence[SlideResult], alone: str) -> list[str]:
    """Return a file name without suffix for each slide of a bag, made of its id, or `alone` for one; all differ."""
    stems: list[str] = []
    for slide in slides:
        stem = slide.header.slide_id.translate(str.maketrans("/\\\0", "___")).lstrip(".") or "slide"
        while stem in stems:
            stem += "_"
        stems.append(stem)
    return stems if len(slides) > 1 else [alone]
