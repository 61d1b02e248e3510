# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""One slide as it is drawn and exported: its patches, the pixels of the slide, and a file made of both."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import openslide
from monai.transforms import Transform

from scripts.core.errors import InputError
from scripts.core.files import write_whole
from scripts.core.hdf5 import require_all_own
from scripts.core.record import BagResult, PatchCoordinates
from scripts.core.scoring import score_name
from scripts.core.units import Level0Pixels
from scripts.outputs.drawing import ranks
from scripts.outputs.writers import with_warnings
from scripts.wsi.annotations.annotation import read_annotation
from scripts.wsi.features.base import MICROMETRES, PIXELS, FeatureHeader
from scripts.wsi.slides.slide import SlideFacts, SlideFolder, best_level, open_slide, read_overview, read_square

TIMES_AVERAGE = "attention (times the average)"
OVERVIEW_SIDE = 1024
LEAST_TILE_PIXELS = 32  # a tile with fewer, cut from a thumbnail, shows nothing


@dataclass(frozen=True)
class SlideResult:
    """One slide of a bag's result, with n patches."""

    bag: BagResult
    own: np.ndarray  # bool, which patches of the bag are of this slide
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
    def microns(self) -> float | None:
        """Micrometres of one unit of coords, where they are known."""
        return self.header.mpp if self.in_pixels else 1.0 if self.header.unit == MICROMETRES else None

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
                bag=result,
                own=own,
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
    """A small picture of a slide."""

    pixels: np.ndarray  # (h, w, 3) uint8
    downsample: float  # level-0 pixels of one of its pixels
    corner: tuple[int, int] = (0, 0)  # the level-0 pixel where it begins


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

    def picture(self, most_pixels: int) -> Thumbnail | None:
        """Return what the window shows of the file of the slide, with so many pixels along its longer side at most.

        Without that file it is the thumbnail.
        """
        if self.facts is None:
            return self.thumbnail
        downsample = max(max(self.facts.scanned) / most_pixels, 1.0)
        with open_slide(self.facts.path) as opened:
            pixels = read_overview(opened, downsample, self.facts.origin, self.facts.scanned)
        return Thumbnail(pixels, downsample, self.facts.origin)

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
        return [_square(self.thumbnail.pixels, x, y, side) for x, y in places]


def _square(pixels: np.ndarray, x: int, y: int, side: int) -> np.ndarray:
    """Return a square of a picture, white where it overhangs the edge."""
    part = pixels[y : y + side, x : x + side]
    whole = np.full((side, side, 3), 255, np.uint8)
    whole[: part.shape[0], : part.shape[1]] = part
    return whole


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


def whole_number(given: object, key: str, least: int, otherwise: str = "") -> int:
    """Return the number that a key gives; `otherwise` is what else it may be."""
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise InputError(f"{key} is {given!r}: give --{key} a whole number from {least} on{otherwise}")
    return given


def file_stems(slides: Sequence[SlideResult], alone: str) -> list[str]:
    """Return a file name without suffix for each slide of a bag, made of its id, or `alone` for one; all differ."""
    stems: list[str] = []
    for slide in slides:
        stem = slide.header.slide_id.translate(str.maketrans("/\\\0", "___")).lstrip(".") or "slide"
        while stem in stems:
            stem += "_"
        stems.append(stem)
    return stems if len(slides) > 1 else [alone]


class FilePerSlide(Transform, ABC):
    """Write a file of each slide of a bag: `output_dir/<bag_id>/map`, or `<slide_id>` for each of several slides.

    A slide whose file breaks while it is read is drawn without it, with a warning.

    Args:
        output_dir: folder of the results.
        slides: folder of the slides; without it only a thumbnail stored with the features is drawn.
        annotation_values: values of a mask or class names of polygons that are drawn as annotated; None = all.
        score: "instance", "evidence" or "attention", which is drawn (on a page, shown first); None: the one that flags.
        shown: at most so many patches are shown beside it, those with the highest score; None: as many as fit well.
    """

    suffix: str
    most_shown: int

    def __init__(
        self,
        output_dir: str,
        slides: str | None = None,
        annotation_values: Sequence[int | str] | None = None,
        score: str | None = None,
        shown: int | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.slides = SlideFolder(slides)
        self.shown = self.most_shown if shown is None else shown
        self.annotation_values = annotation_values
        self.score = None if score is None else score_name(score, "picture_score")

    @abstractmethod
    def content(self, view: SlideView) -> str | bytes:
        """Return what stands in the file of a slide."""

    def wants(self, slide: SlideResult) -> bool:
        """Return whether a slide gets a file; that of an earlier run is removed where it does not."""
        return True

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result: BagResult = data["bag_result"]
        slides = slides_of(result)
        given = data.get("annotation") or [""] * len(slides)  # a batch cannot hold None: an empty path says the same
        annotations = [given] if isinstance(given, str) else given
        if len(annotations) != len(slides):
            count = f"{len(annotations)} annotations for the {len(slides)} slides of a bag"
            raise InputError(f"{count}: give one for each, or null")
        warnings: list[str] = []
        for stem, slide, annotation in zip(file_stems(slides, "map"), slides, annotations, strict=True):
            path = self.output_dir / result.bag_id / f"{stem}{self.suffix}"
            if not self.wants(slide):
                path.unlink(missing_ok=True)
                continue
            view = view_slide(slide, self.slides)
            try:
                content = self.content(self._outlined(view, annotation))
            except (InputError, openslide.OpenSlideError) as error:
                if view.facts is None:
                    raise
                view = SlideView(slide, warnings=(f"the slide is left out of its map: {error}",))
                content = self.content(self._outlined(view, annotation))
            warnings.extend(view.warnings)
            write_whole(path, content)
        return with_warnings(data, warnings)

    def _outlined(self, view: SlideView, annotation: str | None) -> SlideView:
        slide = view.slide
        if not annotation or not slide.in_pixels:
            return view
        truth = read_annotation(annotation, slide.header.slide_size, self.annotation_values, slide.origin)
        return replace(view, outlines=truth.outlines())
