# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic slides: tissue as a map of two stains, coloured by each slide's own staining, in a pyramidal TIFF."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, cos, pi, sin
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from scripts.core.units import Level0Pixels, MicronsPerPixel

MPP = MicronsPerPixel(0.5)
TILE = 256
STAMP = 1024  # side of a periodic texture; a slide is paved with rolled and flipped copies
STAIN_LEVELS = 64  # a pixel is hematoxylin * STAIN_LEVELS + eosin, so that colouring a slide is one table look-up
DENSEST = 1.6  # optical density of the highest level
BACKGROUND = 241.0
HEMATOXYLIN = np.array((0.68, 0.74, 0.40))  # absorption of red, green, blue
EOSIN = np.array((0.10, 0.62, 0.26))
TUMOUR_NAME = "tumour"

Tissue = Literal["stroma", "glands", "inflamed", "tumour", "background"]


@dataclass(frozen=True)
class Outline:
    """A closed curve, star-shaped about its centre, in level-0 pixels."""

    centre: tuple[Level0Pixels, Level0Pixels]
    radii: np.ndarray  # one for each of as many equal angles

    def points(self) -> np.ndarray:  # (N, 2) x, y
        angles = np.arange(len(self.radii)) * 2 * pi / len(self.radii)
        return np.array(self.centre) + self.radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)

    def area(self) -> float:
        return float(np.sum(self.radii * np.roll(self.radii, 1)) * np.sin(2 * pi / len(self.radii)) / 2)

    def contains(self, points: np.ndarray, margin: float) -> bool:
        offset = points - np.array(self.centre)
        angle = np.arctan2(offset[:, 1], offset[:, 0]) % (2 * pi)
        nodes = np.arange(len(self.radii) + 1) * 2 * pi / len(self.radii)
        limit = np.interp(angle, nodes, np.append(self.radii, self.radii[0]))
        return bool((np.hypot(offset[:, 0], offset[:, 1]) < limit - margin).all())

    def is_apart_from(self, other: "Outline") -> bool:
        distance = np.hypot(*np.subtract(self.centre, other.centre))
        return bool(distance > self.radii.max() + other.radii.max())


@dataclass(frozen=True)
class Placing:
    """How the stamps lie in one piece of tissue: no two pieces show the same corner of a texture."""

    roll: tuple[int, int]
    flip: tuple[bool, bool]
    transposed: bool

    def of(self, stamp: np.ndarray) -> np.ndarray:
        rolled = np.roll(stamp.T if self.transposed else stamp, self.roll, (0, 1))
        return rolled[:: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]


@dataclass(frozen=True)
class Piece:
    outline: Outline
    placing: Placing
    patches: tuple[tuple[Tissue, Outline], ...]  # painted in this order over stroma


@dataclass(frozen=True)
class SlidePlan:
    size: tuple[int, int]  # width, height at level 0
    pyramid_step: int
    stains: np.ndarray  # (2, 3) absorption of red, green, blue by this slide's hematoxylin and eosin
    pieces: tuple[Piece, ...]

    def tumours(self) -> list[Outline]:
        return [outline for piece in self.pieces for tissue, outline in piece.patches if tissue == "tumour"]


def plan_slide(seed: int, case: int, positive: bool) -> SlidePlan:
    """Tumour is drawn last and from a stream of its own, so that all else is the same without it."""
    rng = np.random.default_rng([seed, case])
    width, height = (int(side) * TILE for side in rng.integers(10, 13, size=2))
    outlines = _plan_outlines(rng, width, height)
    stains = np.stack((HEMATOXYLIN, EOSIN)) * (1 + rng.normal(0, 0.05, (2, 3))) * rng.uniform(0.8, 1.2, (2, 1))
    pieces = [Piece(outline, _plan_placing(rng), _plan_normal(rng, outline)) for outline in outlines]
    if positive:
        tumour_rng = np.random.default_rng([seed, case, 1])
        wanted = tumour_rng.uniform(0.05, 0.3) * sum(outline.area() for outline in outlines)
        host = int(np.argmax([outline.area() for outline in outlines]))
        pieces[host] = _with_tumour(tumour_rng, pieces[host], wanted)
    return SlidePlan((width, height), 4 if case % 2 == 0 else 2, stains, tuple(pieces))


def _plan_outlines(rng: np.random.Generator, width: int, height: int) -> list[Outline]:
    """One to three pieces side by side along the slide's longer side."""
    count = int(rng.integers(1, 4))
    outlines = []
    for cell in range(count):
        along, cell_width = (cell + 0.5) / count, max(width, height) / count
        centre = (along * width, height / 2) if width >= height else (width / 2, along * height)
        half = np.array((cell_width, min(width, height)) if width >= height else (min(width, height), cell_width)) / 2
        outlines.append(_irregular(rng, centre, half * rng.uniform(0.7, 0.82), roughness=0.05))
    return outlines


def _irregular(
    rng: np.random.Generator, centre: tuple[float, float], half: np.ndarray, roughness: float, nodes: int = 120
) -> Outline:
    angles = np.arange(nodes) * 2 * pi / nodes
    ellipse = 1 / np.hypot(np.cos(angles) / half[0], np.sin(angles) / half[1])
    waves = [
        rng.normal(0, roughness / wave**0.5) * np.cos(wave * angles + rng.uniform(0, 2 * pi)) for wave in range(2, 9)
    ]
    ripple = rng.normal(0, 0.008, nodes)
    return Outline(
        (Level0Pixels(centre[0]), Level0Pixels(centre[1])), ellipse * np.clip(1 + sum(waves) + ripple, 0.6, 1.18)
    )


def _plan_placing(rng: np.random.Generator) -> Placing:
    vertical, horizontal = (int(step) for step in rng.integers(STAMP, size=2))
    return Placing((vertical, horizontal), (rng.random() < 0.5, rng.random() < 0.5), rng.random() < 0.5)


def _plan_normal(rng: np.random.Generator, outline: Outline) -> tuple[tuple[Tissue, Outline], ...]:
    """Fields of glands, and a few clusters of small dark nuclei that are no tumour."""
    half = np.full(2, np.sqrt(outline.area() / pi))
    glands = [_inside(rng, outline, half * rng.uniform(0.3, 0.55), 0.08) for _ in range(2)]
    clusters = [_inside(rng, outline, rng.uniform(70, 170, 2), 0.06) for _ in range(int(rng.integers(1, 4)))]
    return (*(("glands", field) for field in glands), *(("inflamed", cluster) for cluster in clusters))


def _with_tumour(rng: np.random.Generator, piece: Piece, area: float) -> Piece:
    shares = (0.7, 0.3) if rng.random() < 0.35 else (1.0,)
    regions: list[Outline] = []
    for share in shares:
        stretch = rng.uniform(0.75, 1.3)
        half = np.sqrt(share * area / pi) * np.array((stretch, 1 / stretch))
        regions.append(_inside(rng, piece.outline, half, 0.07, regions))
    return Piece(piece.outline, piece.placing, (*piece.patches, *(("tumour", region) for region in regions)))


def _inside(
    rng: np.random.Generator, around: Outline, half: np.ndarray, roughness: float, others: Sequence[Outline] = ()
) -> Outline:
    """An irregular region wholly in the tissue and apart from the others; it shrinks until it finds room."""
    reach = float(around.radii.max())
    while True:
        for _ in range(12):
            x, y = np.array(around.centre) + rng.uniform(-reach, reach, 2)
            region = _irregular(rng, (x, y), half, roughness)
            if around.contains(region.points(), margin=20) and all(map(region.is_apart_from, others)):
                return region
        half = half * 0.93


def annotation(plan: SlidePlan) -> dict[str, object]:
    """The tumour as GeoJSON that QuPath reads; a slide without tumour has no features."""
    return {"type": "FeatureCollection", "features": [_feature(outline) for outline in plan.tumours()]}


def _feature(outline: Outline) -> dict[str, object]:
    ring = [[round(float(x), 1), round(float(y), 1)] for x, y in outline.points()]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        "properties": {"objectType": "annotation", "classification": {"name": TUMOUR_NAME}},
    }


def paint_slide(plan: SlidePlan, seed: int) -> np.ndarray:
    """Level 0 as (height, width, 3)."""
    width, height = plan.size
    stains = _pave(stamp("background", seed), height, width)
    for piece in plan.pieces:
        for tissue, outline in (("stroma", piece.outline), *piece.patches):
            _paint(stains, outline, piece.placing.of(stamp(tissue, seed)))
    return _palette(plan.stains)[stains]


def _paint(stains: np.ndarray, outline: Outline, texture: np.ndarray) -> None:
    points = outline.points()
    left, top = np.maximum(np.floor(points.min(0)).astype(int), 0)
    right, bottom = np.ceil(points.max(0)).astype(int) + 1
    region = stains[top:bottom, left:right]
    mask = Image.new("1", (region.shape[1], region.shape[0]))
    ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in points], fill=1)
    np.copyto(region, _pave(texture, *region.shape), where=np.asarray(mask))


def _pave(texture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.tile(texture, (ceil(height / STAMP), ceil(width / STAMP)))[:height, :width]


def _palette(stains: np.ndarray) -> np.ndarray:
    """The colour of every pair of stain levels, by Beer and Lambert."""
    density = np.arange(STAIN_LEVELS) * DENSEST / (STAIN_LEVELS - 1)
    absorbed = density[:, None, None] * stains[0] + density[None, :, None] * stains[1]
    return np.rint(BACKGROUND * np.exp(-absorbed)).astype(np.uint8).reshape(-1, 3)


@lru_cache(maxsize=16)
def stamp(tissue: Tissue, seed: int) -> np.ndarray:
    """A periodic texture in stain levels, (STAMP, STAMP); drawing nuclei is slow, so it is drawn once."""
    draw = {"stroma": _stroma, "glands": _glands, "inflamed": _inflamed, "tumour": _tumour, "background": _background}
    hematoxylin, eosin = draw[tissue](np.random.default_rng([seed, 1000, list(draw).index(tissue)]))
    levels = [np.rint(np.clip(stain / DENSEST, 0, 1) * (STAIN_LEVELS - 1)) for stain in (hematoxylin, eosin)]
    return (levels[0] * STAIN_LEVELS + levels[1]).astype(np.uint16)


Stains = tuple[np.ndarray, np.ndarray]  # hematoxylin, eosin


def _background(rng: np.random.Generator) -> Stains:
    """Glass is not quite even: at times one level of either stain."""
    specks = DENSEST / (STAIN_LEVELS - 1) * (rng.random((2, STAMP, STAMP)) < 0.03)
    return specks[0] * 0.6, specks[1]


def _stroma(rng: np.random.Generator) -> Stains:
    fibres = _smooth(rng, (2, 16)) * 0.12 + _smooth(rng, (9, 40)) * 0.08
    hematoxylin = np.full((STAMP, STAMP), 0.05, np.float32)
    for point in _scattered(rng, 420):
        _add_nucleus(hematoxylin, point, (rng.uniform(7, 10), rng.uniform(2.5, 4)), rng.normal(0, 0.35), 0.75)
    return _wavy(hematoxylin + _smooth(rng, (1, 1)) * 0.03), _wavy(0.5 + fibres)


def _wavy(texture: np.ndarray) -> np.ndarray:
    """Whole waves over the stamp, so that it stays periodic."""
    rows, columns = np.ogrid[:STAMP, :STAMP]
    turns = 2 * pi * columns / STAMP
    return texture[(rows + np.rint(34 * np.sin(2 * turns) + 12 * np.sin(5 * turns)).astype(int)) % STAMP, columns]


def _glands(rng: np.random.Generator) -> Stains:
    """Rings of epithelium about an empty lumen, their nuclei at the base, in loose stroma."""
    hematoxylin, eosin = (np.array(stain, np.float32) for stain in _stroma(rng))
    pitch = STAMP // 6
    for row in range(6):
        for column in range(6):
            point = (np.array((row, column + row % 2 / 2)) + 0.5 + rng.uniform(-0.14, 0.14, 2)) * pitch
            _add_gland(rng, hematoxylin, eosin, point, rng.uniform(0.3, 0.42) * pitch)
    return hematoxylin, eosin


def _add_gland(
    rng: np.random.Generator, hematoxylin: np.ndarray, eosin: np.ndarray, point: np.ndarray, radius: float
) -> None:
    window, along, across = _around(point, radius * 1.3, rng.uniform(0.75, 1.3), rng.uniform(0, pi))
    distance = np.sqrt(along**2 + across**2)
    cells, lumen = distance < radius, distance < radius * rng.uniform(0.3, 0.6)
    hematoxylin[window] = np.where(lumen, 0.0, np.where(cells, 0.14, hematoxylin[window]))
    eosin[window] = np.where(lumen, 0.03, np.where(cells, 0.42, eosin[window]))
    count = int(2 * pi * radius / 17)
    for turn in np.arange(count) * 2 * pi / count + rng.normal(0, 0.03, count):
        base = point + 0.86 * radius * np.array((np.sin(turn), np.cos(turn)))
        _add_nucleus(hematoxylin, base, (rng.uniform(6, 8), rng.uniform(5, 6.5)), turn, rng.uniform(0.7, 0.9))


def _inflamed(rng: np.random.Generator) -> Stains:
    """Lymphocytes: small, round, dark and crowded."""
    hematoxylin = np.full((STAMP, STAMP), 0.12, np.float32)
    for point in _scattered(rng, 3600):
        size = rng.uniform(4.5, 6)
        _add_nucleus(hematoxylin, point, (size, size), 0.0, rng.uniform(1.0, 1.3))
    return hematoxylin, 0.35 + _smooth(rng, (5, 5)) * 0.08


def _tumour(rng: np.random.Generator) -> Stains:
    """Crowded nuclei, large and of every shape, in bluish cytoplasm, with a few strands of stroma between."""
    strands = np.abs(_smooth(rng, (26, 26))) < 0.12
    hematoxylin = (np.where(strands, 0.05, 0.26) + _smooth(rng, (3, 3)) * 0.04).astype(np.float32)
    for point in _scattered(rng, 1500):
        if not strands[tuple(point.astype(int))]:
            axes = (rng.uniform(9, 15), rng.uniform(6.5, 10))
            _add_nucleus(hematoxylin, point, axes, rng.uniform(0, pi), rng.uniform(0.6, 1.15), rng.uniform(0.05, 0.2))
    return hematoxylin, np.where(strands, 0.6, 0.34) + _smooth(rng, (4, 4)) * 0.06


def _add_nucleus(
    hematoxylin: np.ndarray,
    point: np.ndarray,
    axes: tuple[float, float],
    turn: float,
    density: float,
    irregular: float = 0.0,
) -> None:
    """Axes are half-lengths in pixels. Chromatin is denser at the rim, as under a microscope."""
    stretch = (axes[0] / axes[1]) ** 0.5
    radius = (axes[0] * axes[1]) ** 0.5
    window, along, across = _around(point, max(axes) * (1 + irregular) + 2, stretch, turn)
    lobes = np.cos(3 * np.arctan2(across, along) + 7 * turn) if irregular else 0.0
    edge = radius * (1 + irregular * lobes)
    square = along**2 + across**2
    chromatin = density * (0.85 + 0.15 * np.minimum(square / edge**2, 1))
    filled = np.minimum(edge + 0.5 - np.sqrt(square), 1)
    hematoxylin[window] = np.maximum(hematoxylin[window], chromatin * filled)


def _around(
    point: np.ndarray, reach: float, stretch: float, turn: float
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Indices about a point that wrap at the stamp's edges, and their places in a turned, stretched frame."""
    side = np.arange(-ceil(reach), ceil(reach) + 1)
    rows, columns = (side + int(middle) for middle in point)
    y, x = side[:, None], side[None, :]
    along = (cos(turn) * x + sin(turn) * y) / stretch
    across = (cos(turn) * y - sin(turn) * x) * stretch
    return (rows[:, None] % STAMP, columns[None, :] % STAMP), along, across


def _scattered(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """About `count` points on a jittered lattice: cells keep some distance from each other."""
    side = round(count**0.5)
    for row in range(side):
        for column in range(side):
            yield (np.array((row, column)) + rng.uniform(0, 1, 2)) * STAMP / side % STAMP


def _smooth(rng: np.random.Generator, widths: tuple[float, float]) -> np.ndarray:
    field = gaussian_filter(rng.standard_normal((STAMP, STAMP), dtype=np.float32), widths, mode="wrap", truncate=2)
    return field / field.std()


def write_slide(plan: SlidePlan, seed: int, path: Path) -> None:
    """A tiled pyramid; OpenSlide reads micrometres per pixel of a plain TIFF from the resolution tags."""
    with tifffile.TiffWriter(path) as tiff:
        for level, pixels in enumerate(_pyramid(paint_slide(plan, seed), plan.pyramid_step)):
            tiff.write(
                pixels,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="deflate",
                compressionargs={"level": 1},
                subfiletype=1 if level else 0,
                resolution=(1e4 / MPP / plan.pyramid_step**level,) * 2,
                resolutionunit="CENTIMETER",
                description=None if level else "SYNTHETIC H&E-like slide, not from a patient",
                metadata=None,
                software="",  # the default names a version, and files should depend on the seed alone
            )


def _pyramid(pixels: np.ndarray, step: int) -> Iterator[np.ndarray]:
    """Each level is the area average of the one before it, down to about a thumbnail."""
    yield pixels
    image = Image.fromarray(pixels)
    while min(image.size) > 2 * TILE:
        image = image.reduce(step)
        yield np.asarray(image)
