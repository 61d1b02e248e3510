# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The annotation of a slide by a pathologist: which tiles lie in it, and which lesions it makes."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from scipy import ndimage

from scripts.core.errors import InputError
from scripts.core.lesions import Lesions
from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.wsi.annotations.masks import read_mask
from scripts.wsi.annotations.polygons import read_asap, read_geojson

T = TypeVar("T", int, str)

SAMPLES = 16  # points along each side of a tile at which the annotation is sampled
CELLS = 2**24  # of a grid of points, at once
MOST_BYTES = 2**30  # of a file of polygons

# of the evaluation of CAMELYON16, and so of MONAI's LesionFROC; micrometres
GROW_DISTANCE = 75.0  # areas less than this apart are one lesion: five tumour cells
ITC_DIAMETER = 200.0  # a lesion shorter than this, before it grows, is isolated tumour cells
CELL = 8.0  # MONAI's level 5 of a slide at 0.25


class Area(Protocol):
    """What is annotated on one slide, in level-0 pixels."""

    def bounds(self) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom of what may be annotated; None if nothing is."""

    def covered(self, corner: np.ndarray, step: float, height: int, width: int) -> np.ndarray:
        """(height, width) bool: whether the points `corner` + `step` × (column + ½, row + ½) are annotated."""

    def outlines(self) -> list[np.ndarray]:
        """Lines (V, 2) to draw, closed from the last point to the first."""


@dataclass(frozen=True)
class Annotation:
    """What is annotated on one slide."""

    area: Area  # of polygons or a mask
    counts_from_bounds: bool = False  # the coordinates in its file begin at the bounds of the slide, as those of QuPath

    def outlines(self) -> list[np.ndarray]:
        """Return polygons (V, 2) to draw, in level-0 pixels."""
        return self.area.outlines()

    def tile_labels(self, coords: Level0Coords, tile: Level0Pixels) -> np.ndarray:
        """Return (N,) bool: whether more than half of each tile is annotated."""
        labels = np.zeros(len(coords), dtype=bool)
        bounds = self.area.bounds()
        if bounds is None or len(coords) == 0:
            return labels
        may_be = ((coords + tile > bounds[:2]) & (coords < bounds[2:])).all(axis=1)
        order = np.flatnonzero(may_be)[np.argsort(coords[may_be, 1], kind="stable")]
        sample = tile / SAMPLES
        while len(order):  # in bands: the samples of a whole slide may not fit into memory
            first = coords[order[0], 1]
            columns = np.ptp(coords[order, 0]) / sample + SAMPLES
            end = int(np.searchsorted(coords[order, 1], first + max(tile, sample * CELLS / columns), side="left"))
            band, order = order[:end], order[end:]
            labels[band] = self._more_than_half(coords[band], sample)
        return labels

    def _more_than_half(self, coords: np.ndarray, sample: float) -> np.ndarray:
        corner = coords.min(axis=0)
        first = np.rint((coords - corner) / sample).astype(int)  # (N, 2) column, row of each tile's first sample
        width, height = first.max(axis=0) + SAMPLES
        covered = self.area.covered(corner, sample, height, width)
        total = np.pad(covered.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32), ((1, 0), (1, 0)))
        (left, top), (right, bottom) = first.T, first.T + SAMPLES
        inside: np.ndarray = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
        return inside > SAMPLES**2 / 2

    def lesions(self, coords: Level0Coords, tile: Level0Pixels, mpp: MicronsPerPixel | None) -> Lesions:
        """Return the lesions as CAMELYON16 and MONAI's LesionFROC count them, on a grid of 8 micrometres.

        Areas less than GROW_DISTANCE apart are one lesion, with the rim of half of it around it and its holes; a lesion
        shorter than the sum of ITC_DIAMETER and that distance is excluded. Positions are right to half a cell, and
        areas smaller than a cell may be lost. Cells are larger for an annotation as wide as a large slide.
        Without `mpp` cells are an eighth of a tile, areas are one where they touch, and none is excluded.
        """
        bounds = self.area.bounds()
        none = Lesions(np.zeros(len(coords), dtype=int), 0)
        if bounds is None:
            return none
        start, size = np.array(bounds[:2]), np.subtract(bounds[2:], bounds[:2])
        cell = max(CELL / mpp if mpp else tile / 8, float(np.sqrt(size.prod() / CELLS)))
        width, height = (ceil(side / cell) for side in size)
        covered = self.area.covered(start, cell, height, width)
        if not covered.any():
            return none
        grow = GROW_DISTANCE / 2 / (cell * mpp) if mpp else 0.0
        labels, corner = _grown_and_labelled(covered, grow)
        shortest = (GROW_DISTANCE + ITC_DIAMETER) / (cell * mpp) if mpp else 0.0
        excluded = tuple(int(k) for k in np.flatnonzero(_longest_axes(labels) < shortest) + 1)
        column, row = np.floor((coords + tile / 2 - start) / cell - corner).astype(int).T
        known = (row >= 0) & (row < labels.shape[0]) & (column >= 0) & (column < labels.shape[1])
        of_instance = np.zeros(len(coords), dtype=int)
        of_instance[known] = labels[row[known], column[known]]
        return Lesions(of_instance, int(labels.max()), excluded)


def read_annotation(
    path: str | Path,
    slide_size: tuple[int, int] | None = None,
    values: Sequence[int | str] | None = None,
    origin: tuple[int, int] | None = (0, 0),
    patches: np.ndarray | None = None,
) -> Annotation:
    """Read an annotation; its content tells the format: GeoJSON (also gzipped), ASAP's XML, a TIFF or PNG mask.

    Args:
        path: of the annotation.
        slide_size: width, height at level 0, which a mask may cover in fewer pixels; None = it has as many.
        values: what counts: values of the pixels of a mask (None = all above 0), or class names of polygons
            (None = all but those that say it is no lesion).
        origin: the slide's bounds-x, bounds-y, which QuPath, and so GeoJSON, takes for 0, 0; None = unknown.
        patches: (N, 2) their corners at level 0, which lie within a mask of full resolution.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(16)
        if begin[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") or begin.startswith(b"\x89PNG"):
            return Annotation(read_mask(path, slide_size, _require(int, values, f"{path} is a mask"), patches))
        content = _polygon_bytes(path, zipped=begin.startswith(b"\x1f\x8b"))
    except OSError as error:
        raise InputError(f"no annotation can be read from {path}: {error.strerror}; correct the path") from error
    text = content[:64].translate(None, b"\xef\xbb\xbf\xfe\xff\0 \t\r\n")  # without what UTF-8 and UTF-16 put before it
    if not text:
        raise InputError(f"{path} is empty; export the annotations again, as GeoJSON with no feature if there is none")
    names = _require(str, values, f"{path} holds polygons")
    names = names and [name.lower() for name in names]
    if text.startswith(b"<"):
        return Annotation(read_asap(path, content, names))
    if text[:1] in (b"{", b"["):
        return Annotation(read_geojson(path, content, names, origin or (0, 0)), counts_from_bounds=True)
    raise InputError(f"{path} is no annotation; give GeoJSON, the XML of ASAP, or a mask as TIFF or PNG")


def joined(several: Sequence[Lesions]) -> Lesions:
    """Return the lesions of a bag of several slides, whose patches follow each other."""
    whole = Lesions(np.zeros(0, int), 0)
    for each in several:
        shifted = np.where(each.of_instance, each.of_instance + whole.count, 0)
        excluded = whole.excluded + tuple(whole.count + k for k in each.excluded)
        whole = Lesions(np.concatenate([whole.of_instance, shifted]), whole.count + each.count, excluded)
    return whole


def _polygon_bytes(path: str | Path, zipped: bool) -> bytes:
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}); export the annotations again") from error
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} holds more than a gigabyte; export the annotations alone, not all objects")
    return content


def _require(kind: type[T], values: Sequence[int | str] | None, what: str) -> list[T] | None:
    fitting = [value for value in values or () if isinstance(value, kind)]
    if len(fitting) < len(values or ()):
        wanted = "numbers" if kind is int else "class names"
        raise InputError(f"{what}, and the values {values} are not all {wanted}; give those that count")
    return None if values is None else fitting


def _grown_and_labelled(covered: np.ndarray, grow: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the lesions, numbered from 1, on the part of the grid that holds them; and its first column and row."""
    rim = ceil(grow) + 1
    rows, columns = (np.flatnonzero(covered.any(axis=axis)) for axis in (1, 0))
    part = np.pad(covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], rim)
    if grow > 0:
        part = ndimage.distance_transform_edt(~part) < grow
    labels, _ = ndimage.label(ndimage.binary_fill_holes(part), structure=np.ones((3, 3)))
    return labels, np.array([columns[0], rows[0]]) - rim


def _longest_axes(labels: np.ndarray) -> np.ndarray:
    """Return for each lesion the longer axis, in cells, of the ellipse with its second moments, as scikit-image."""
    cells = (np.nonzero(labels[box] == k) for k, box in enumerate(ndimage.find_objects(labels), 1))
    variances = [np.linalg.eigvalsh(np.cov(places, bias=True))[-1] for places in cells]
    return 4 * np.sqrt(np.maximum(variances, 0))
