# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Annotations that are mask images: TIFF (CAMELYON16, PANDA) or PNG, read in parts and no finer than needed."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Protocol

import numpy as np
import openslide
import tifffile
from PIL import Image

from scripts.core.errors import InputError

PART_PIXELS = 2**24  # read at once
OUTLINE_CELLS = 1024  # along the longer side of the slide: an outline is for the eye
MOST_PIXELS_OF_A_SEGMENT = 2**28
CODECS_OF_TIFFFILE = frozenset({1, 8, 32773, 32946})  # none, deflate, PackBits: the others need another package


class _Image(Protocol):
    """An image at one or more levels, (width, height) each from the largest down, and how to read a part of one."""

    sizes: list[tuple[int, int]]

    def read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """(height, width) or (height, width, channels)."""


@dataclass(frozen=True)
class Mask:
    """The area where a mask image has one of some values."""

    path: str | Path
    slide_size: tuple[int, int]  # width, height at level 0, which the image covers
    values: Sequence[int] | None  # that count, in the first channel; None = any above 0, in any channel

    def bounds(self) -> tuple[float, float, float, float] | None:
        return 0.0, 0.0, *self.slide_size

    def covered(self, corner: np.ndarray, step: float, height: int, width: int) -> np.ndarray:
        covered = np.zeros((height, width), dtype=bool)
        with _open_mask(self.path) as image:
            # the smallest level that still has a pixel for each point
            fine_enough = [i for i, size in enumerate(image.sizes) if self.slide_size[0] <= 1.02 * step * size[0]]
            level = max(fine_enough, default=0)
            sides = zip(corner, (width, height), image.sizes[level], self.slide_size, strict=True)
            columns, rows = (
                np.floor((start + step * (np.arange(count) + 0.5)) * pixels / whole).astype(int)
                for start, count, pixels, whole in sides
            )
            across = np.flatnonzero((columns >= 0) & (columns < image.sizes[level][0]))
            down = np.flatnonzero((rows >= 0) & (rows < image.sizes[level][1]))
            while len(across) and len(down):
                left, top, right = columns[across[0]], rows[down[0]], columns[across[-1]] + 1
                end = np.searchsorted(rows[down], top + max(1, PART_PIXELS // (right - left)))
                points, down = down[:end], down[end:]
                with _damage_as_input_error(self.path):
                    part = image.read(level, int(left), int(top), int(right - left), int(rows[points[-1]] + 1 - top))
                channels = np.atleast_3d(part[np.ix_(rows[points] - top, columns[across] - left)])
                counts = channels[..., :3] > 0 if self.values is None else np.isin(channels[..., :1], self.values)
                covered[np.ix_(points, across)] = counts.any(axis=-1)
        return covered

    def outlines(self) -> list[np.ndarray]:
        """Return the outlines of what is annotated, along the sides of coarse cells."""
        step = max(1.0, max(self.slide_size) / OUTLINE_CELLS)
        width, height = (ceil(side / step) for side in self.slide_size)
        return [ring * step for ring in outlined(self.covered(np.zeros(2), step, height, width))]


def read_mask(
    path: str | Path,
    slide_size: tuple[int, int] | None,
    values: Sequence[int] | None,
    patches: np.ndarray | None = None,
) -> Mask:
    """Without a size of the slide, the mask is taken to be of full resolution, if all patches begin within it."""
    with _open_mask(path) as image:
        width, height = image.sizes[0]
    across, down = slide_size or (width, height)
    problem = ""
    if abs(width * down - height * across) > across + down:  # each side of the mask may be rounded by up to a pixel
        problem = f"which is not the shape of the slide of {across} × {down}; give the mask of this slide"
    elif slide_size is None and patches is not None and (patches > (width, height)).any():
        problem = (
            "and patches lie beyond it: to know how much smaller than the slide it is, give the folder of the slides "
            "with --slides"
        )
    if problem:
        raise InputError(f"{path} is a mask of {width} × {height} pixels, {problem}")
    return Mask(path, (across, down), values)


def outlined(cells: np.ndarray) -> list[np.ndarray]:
    """Return closed lines (V, 2) x, y around the true cells of (h, w), which the even-odd rule fills with them."""
    padded = np.pad(cells, 1).astype(np.int8)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # each side between two cells that differ, walked with the true cell on the right
    for y, x in np.argwhere(np.diff(padded, axis=0)[:, 1:-1]):
        begin, end = ((x, y), (x + 1, y)) if padded[y + 1, x + 1] else ((x + 1, y), (x, y))
        following.setdefault(begin, []).append(end)
    for y, x in np.argwhere(np.diff(padded, axis=1)[1:-1]):
        begin, end = ((x, y), (x, y + 1)) if padded[y + 1, x] else ((x, y + 1), (x, y))
        following.setdefault(begin, []).append(end)
    rings = []
    while following:
        start = place = next(iter(following))
        ring: list[tuple[int, int]] = []
        while not ring or place != start:
            ring.append(place)
            place = following[place].pop()
            if not following[ring[-1]]:
                del following[ring[-1]]
        points = np.array(ring, dtype=np.float64)
        straight = (np.roll(points, 1, axis=0) + np.roll(points, -1, axis=0) == 2 * points).all(axis=1)
        rings.append(points[~straight])
    return rings


@contextmanager
def _open_mask(path: str | Path) -> Generator[_Image, None, None]:
    with ExitStack() as stack:
        with _damage_as_input_error(path):
            with open(path, "rb") as file:
                is_tiff = file.read(2) in (b"II", b"MM")
            image = _of_tiff(path, stack.enter_context(tifffile.TiffFile(path))) if is_tiff else _WholeImage(path)
        yield image


@contextmanager
def _damage_as_input_error(path: str | Path) -> Generator[None, None, None]:
    """Raise InputError, in one line, for whatever the libraries that read images raise."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged file makes them fail in every way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the mask {path} cannot be read ({reason}); copy it again, or save it anew") from error


def _of_tiff(path: str | Path, file: tifffile.TiffFile) -> _Image:
    if all(level.keyframe.compression in CODECS_OF_TIFFFILE for level in file.series[0].levels):
        return _Segments(path, file)
    page = file.series[0].levels[0].keyframe
    # OpenSlide makes colours of 8 bits of all others: their values would be lost
    plain = page.bitspersample == 8 and page.photometric in (1, 2, 6)  # black is zero, RGB, YCbCr
    return _Pyramid(path) if plain and openslide.OpenSlide.detect_format(path) else _WholeImage(path)


class _Pyramid:
    """A pyramid of any compression: ASAP, and so CAMELYON, writes LZW."""

    def __init__(self, path: str | Path) -> None:
        self._slide = openslide.OpenSlide(path)
        self.sizes = list(self._slide.level_dimensions)

    def read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        downsample = self._slide.level_downsamples[level]
        corner = (round(left * downsample), round(top * downsample))
        return np.asarray(self._slide.read_region(corner, level, (width, height)))


class _Segments:
    """A TIFF of any values, in strips or tiles: those that a part touches."""

    def __init__(self, path: str | Path, file: tifffile.TiffFile) -> None:
        self._path = path
        self._file = file.filehandle
        self._pages = [level.keyframe for level in file.series[0].levels]
        self.sizes = [(page.imagewidth, page.imagelength) for page in self._pages]

    def read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        page = self._pages[level]
        if page.is_memmappable and page.planarconfig == 1:
            pixels: np.ndarray = page.asarray(out="memmap")
            return pixels[top : top + height, left : left + width]
        high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        if high * wide > MOST_PIXELS_OF_A_SEGMENT:
            raise InputError(f"{self._path} is one large piece that cannot be read in parts; save the mask in tiles")
        grid = (-1, ceil(page.imagelength / high), ceil(page.imagewidth / wide))
        numbers = np.arange(len(page.dataoffsets)).reshape(grid)
        touched = numbers[:, top // high : ceil((top + height) / high), left // wide : ceil((left + width) / wide)]
        part = np.zeros((height, width, page.samplesperpixel), page.dtype)
        for index in touched.ravel().tolist():
            self._file.seek(page.dataoffsets[index])
            content = self._file.read(page.databytecounts[index])
            segment, (plane, _, y, x, _), _ = page.decode(content or None, index)
            if segment is not None:  # the file leaves out what is 0
                y, x = y - top, x - left
                segment = segment[0, max(0, -y) : height - y, max(0, -x) : width - x]
                rows, columns, channels = segment.shape
                y, x = max(0, y), max(0, x)
                part[y : y + rows, x : x + columns, plane : plane + channels] = segment
        return part


class _WholeImage:
    """A small image of any form, as PIL reads it."""

    def __init__(self, path: str | Path) -> None:
        try:
            with Image.open(path) as image:
                self._pixels = np.asarray(image)
        except Image.DecompressionBombError as error:
            raise InputError(f"the mask {path} is too large to be read whole; save it as a TIFF in tiles") from error
        self.sizes = [(self._pixels.shape[1], self._pixels.shape[0])]

    def read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        return self._pixels[top : top + height, left : left + width]
