# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The slides that features were made of: found by name, they complete the metadata of feature files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openslide

from scripts.core.errors import InputError
from scripts.core.units import Level0Pixels, MicronsPerPixel
from scripts.wsi.features.base import MICROMETRES, PIXELS, FeatureHeader
from scripts.wsi.slides.slide import SLIDE_SUFFIXES, damaged, open_slide, read_mpp, read_origin


@dataclass(frozen=True)
class SlideFacts:
    """The metadata of a slide."""

    path: Path
    size: tuple[int, int]  # width, height in level-0 pixels
    mpp: MicronsPerPixel | None
    origin: tuple[int, int]  # of its bounds
    scanned: tuple[int, int]  # width and height of its bounds; some slides are mostly empty canvas

    def require_same(self, header: FeatureHeader, coords: np.ndarray) -> None:
        """Refuse features of another slide with the same name; coords: (N, 2) in level-0 pixels."""
        centres = coords + header.tile / 2
        if header.slide_size not in (None, self.size) or (len(centres) and (centres > self.size).any()):
            width, height = self.size
            raise InputError(
                f"{self.path.name} has {width} × {height} pixels, and its features are of another slide's: "
                "give the slide that they were made of"
            )


class Completed(NamedTuple):
    """The header and coordinates of features, completed with the metadata of their slide."""

    header: FeatureHeader
    coords: np.ndarray  # (N, 2) in the header's unit
    warnings: tuple[str, ...] = ()


class SlideFolder:
    """Finds slides by name in a folder or below it.

    Args:
        folder: of the slides; None = no slide is ever found.
    """

    def __init__(self, folder: str | None) -> None:
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"no folder of slides {folder}: give the folder that holds them as `slides`, or null")
        self.folder = folder

    def find(self, slide_id: str, features: str | Path) -> SlideFacts | None:
        """Return the slide of an id, else that of the name of the features; None without a folder."""
        if self.folder is None:
            return None
        path = self._paths.get(slide_id) or self._paths.get(Path(features).stem)
        if path is None:
            raise InputError(f"no slide {slide_id} in the folder of slides: of it only what its features say is known")
        return read_facts(path)

    def completed(
        self, header: FeatureHeader, coords: np.ndarray, features: str | Path, slide_mpp: float | None = None
    ) -> Completed:
        """Add the metadata that features lack, from the slide, else from the user; micrometres become pixels.

        A slide that cannot be used becomes a warning.
        """
        if None not in (header.slide_size, header.mpp, header.origin):
            return Completed(header, coords)
        try:
            return _completed(header, coords, self.find(header.slide_id, features), slide_mpp)
        except InputError as error:
            return _completed(header, coords, None, slide_mpp)._replace(warnings=(str(error),))

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """The path of every slide by its name without suffix; of two with one name, that of the upper folder."""
        found: dict[str, Path] = {}
        for folder, folders, names in os.walk(self.folder or "."):
            folders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                if path.suffix.lower() in SLIDE_SUFFIXES and not path.name.startswith("."):
                    found.setdefault(path.stem, path)
        # TRIDENT calls the features of x.ome.tif x
        return {name.removesuffix(".ome"): path for name, path in found.items()} | found


def read_facts(path: Path) -> SlideFacts:
    """Read the metadata of a slide."""
    with open_slide(path) as slide:
        try:
            stated = read_mpp(slide, path, MicronsPerPixel(np.nan))
            origin = read_origin(slide)
            scanned = scanned_sides(slide.properties, origin, slide.dimensions)
            return SlideFacts(path, slide.dimensions, None if np.isnan(stated) else stated, origin, scanned)
        except openslide.OpenSlideError as error:
            raise damaged(path, error) from error


def scanned_sides(properties: Mapping[str, str], origin: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of what was scanned; all that lies below and right of `origin` if it states none."""
    names = (openslide.PROPERTY_NAME_BOUNDS_WIDTH, openslide.PROPERTY_NAME_BOUNDS_HEIGHT)
    stated = (properties.get(name, "") for name in names)
    width, height = (
        min(int(text), whole - start) if text.isdecimal() and int(text) > 0 else whole - start
        for text, start, whole in zip(stated, origin, size, strict=True)
    )
    return width, height


def _completed(
    header: FeatureHeader, coords: np.ndarray, slide: SlideFacts | None, slide_mpp: float | None
) -> Completed:
    of_slide = None if slide is None else slide.mpp
    of_user = None if slide_mpp is None else MicronsPerPixel(slide_mpp)
    mpp = next((each for each in (header.mpp, of_slide, of_user) if each is not None), None)
    if header.unit == MICROMETRES and mpp is not None:
        pitch, tile = Level0Pixels(header.pitch / mpp), Level0Pixels(header.tile / mpp)
        header = replace(header, unit=PIXELS, pitch=pitch, tile=tile)
        coords = np.rint(coords / mpp).astype(np.int64)
    header = replace(header, mpp=mpp)
    if slide is not None:
        if header.unit == PIXELS:
            slide.require_same(header, coords)
        origin = slide.origin if header.origin is None else header.origin
        header = replace(header, slide_size=slide.size, origin=origin)
    return Completed(header, coords)
