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
"""One slide as it is drawn and exported: its patches in its own pixels, and where its picture is read from."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import openslide

from scripts.data.feature_forms import PIXELS
from scripts.data.results import BagResult, SlideResult
from scripts.data.slides import (
    SLIDE_SUFFIXES,
    best_level,
    open_slide,
    read_mpp,
    read_origin,
    read_overview,
    read_square,
)
from scripts.errors import InputError
from scripts.units import Level0Pixels, MicronsPerPixel

OVERVIEW_SIDE = 1024
LEAST_TILE_PIXELS = 32  # a tile with fewer, cut from a thumbnail, shows nothing


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
        """Left, top, right, bottom of what is drawn: the slide, or as much of it as has patches."""
        if self.scanned is not None:
            left, top, right, bottom = self.scanned
            return float(left), float(top), float(right), float(bottom)
        if self.size is not None and self.in_pixels:
            return 0.0, 0.0, float(self.size[0]), float(self.size[1])
        if len(self.coords) == 0:
            return 0.0, 0.0, self.tile, self.tile
        (left, top), (right, bottom) = self.coords.min(0) - self.tile, self.coords.max(0) + 2 * self.tile
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


class SlideFolder:
    """Finds the file of a slide by its name in a folder, or below it; without a folder there is none."""

    def __init__(self, folder: str | None) -> None:
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"no folder of slides {folder}: give the folder that holds them as `slides`, or null")
        self.folder = folder

    def view(self, slide: SlideResult) -> SlideView:
        header = slide.header
        view = SlideView(
            coords=np.asarray(slide.coords, dtype=float),
            tile=float(header.tile),
            unit=header.unit,
            mpp=header.mpp,
            size=header.slide_size,
            origin=header.origin,
            features=Path(slide.source),
        )
        if self.folder is None:
            return view
        path = self._paths.get(header.slide_id) or self._paths.get(view.features.stem)
        if path is None:
            warning = f"no slide {header.slide_id} in the folder of slides: its map is drawn without it"
            return view.without_slide(warning)
        try:
            return _seen(view, path)
        except (InputError, openslide.OpenSlideError) as error:
            return view.without_slide(f"the slide is left out of its map: {error}")

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """Of every slide, by its name without the suffix; that of the upper folder, where two have one name."""
        found: dict[str, Path] = {}
        for folder, folders, names in os.walk(self.folder or "."):
            folders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                if path.suffix.lower() in SLIDE_SUFFIXES and not path.name.startswith("."):
                    found.setdefault(path.stem, path)
        return found


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


def _seen(view: SlideView, path: Path) -> SlideView:
    """With what the slide itself says of its size, pixels and bounds."""
    with open_slide(path) as slide:
        stated = read_mpp(slide, path, MicronsPerPixel(np.nan))
        size = slide.dimensions
        origin = read_origin(slide)
        sides = scanned_sides(slide.properties, origin, size)
    mpp = view.mpp if view.mpp is not None else None if np.isnan(stated) else stated
    if not view.in_pixels:
        if mpp is None:
            return view
        view = replace(view, coords=view.coords / mpp, tile=view.tile / mpp, unit=PIXELS)
    centres = view.coords + view.tile / 2
    if view.size not in (None, size) or (len(centres) and (centres > size).any()):
        raise InputError(f"{path.name} has {size[0]} × {size[1]} pixels, and its features are of another slide's")
    (x, y), (width, height) = origin, sides
    return replace(view, mpp=mpp, size=size, origin=origin, path=path, scanned=(x, y, x + width, y + height))


def scanned_sides(properties: Mapping[str, str], origin: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of what was scanned; where a slide names none, all that lies below and right of its origin."""
    names = (openslide.PROPERTY_NAME_BOUNDS_WIDTH, openslide.PROPERTY_NAME_BOUNDS_HEIGHT)
    stated = (properties.get(name, "") for name in names)
    width, height = (
        min(int(text), whole - start) if text.isdecimal() and int(text) > 0 else whole - start
        for text, start, whole in zip(stated, origin, size, strict=True)
    )
    return width, height


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
    with open_slide(path) as slide:
        sides = scanned_sides(slide.properties, read_origin(slide), slide.dimensions)
        downsample = max(max(sides) / OVERVIEW_SIDE, 1.0)
        return Thumbnail(read_overview(slide, downsample), downsample)


def _read_tiles(path: Path, corners: np.ndarray, tile: float, pixels: int) -> list[np.ndarray]:
    with open_slide(path) as slide:
        level = best_level(slide.level_downsamples, Level0Pixels(tile / pixels))
        side = max(round(tile / slide.level_downsamples[level]), 1)
        return [read_square(slide, (x, y), level, side, pixels) for x, y in np.rint(corners).astype(int).tolist()]
