# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Slides by OpenSlide: found in a folder, opened, their metadata, and tiles at a wanted resolution."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from scripts.core.errors import InputError
from scripts.core.units import Level0Pixels, MicronsPerPixel
from scripts.wsi.features.base import MICROMETRES, PIXELS, FeatureHeader, SlidePatches
from scripts.wsi.slides.dicom import DICOM_SUFFIX, dicom_slides, is_dicom

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi"}
)
SAME_SCALE = 0.02  # scanners write 0.499 or 0.2527 for 0.5 and 0.25: resampling for that would only blur
MOST_ENLARGEMENT = 1.1  # a tile enlarged further shows detail that the slide never had
PLAUSIBLE_MPP = (0.02, 20.0)  # beyond lies the 72 dpi that image programs write into a TIFF
MOST_PIXELS = 2 * 10**11  # a whole slide of glass at 0.1 micrometres per pixel: more is a damaged header
MOST_PIXELS_OF_A_TILE = 8192**2
MORE_THAN_ROUNDING = 16  # pixels of a side, from which on its ratio to another level's is that of the slide
BLOCK_PIXELS = 2048  # an overview is read in blocks of this side: a level may be larger than the memory


@dataclass(frozen=True)
class TilePlan:
    """How the tiles of one slide are read."""

    level: int
    side: float  # pixels of that level that a tile spans
    pixels: int  # pixels the encoder takes
    tile: Level0Pixels
    pitch: Level0Pixels


def find_slides(slides: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Return name → file of the slides below a folder, or of any files of a list, in order of these names.

    A feature file is called as its slide. A slide in DICOM is a series of files in one folder, of which the first
    stands here.
    """
    if not isinstance(slides, (str, Path)):
        paths = [Path(path) for path in slides]
        if missing := [path for path in paths if not path.is_file()]:
            raise InputError(f"no slide {missing[0]}; correct its path in --slides")
        found = [_named(path) for path in paths]
    elif not Path(slides).is_dir():
        raise InputError(f"no directory of slides {slides}; put them there, or give theirs with --slides")
    elif not (found := list(_slides_below(Path(slides)))):
        suffixes = " ".join(sorted({*SLIDE_SUFFIXES, DICOM_SUFFIX}))
        raise InputError(f"no slide in {slides} ({suffixes}); put slides there, or give their folder with --slides")
    by_name: dict[str, Path] = {}
    for name, path in sorted(found):
        other = by_name.setdefault(name, path)
        if other != path:
            raise InputError(f"{other} and {path} would both be written as {name}.h5; rename one of them")
    return by_name


def holds_slides(folder: Path) -> bool:
    return next(_slides_below(folder), None) is not None


def _slides_below(folder: Path) -> Iterator[tuple[str, Path]]:
    with_dicom: set[Path] = set()
    for path in folder.rglob("*"):
        is_hidden = path.name.startswith(".")  # what a Mac leaves on other disks
        if path.suffix.lower() in SLIDE_SUFFIXES and not is_hidden and path.is_file():
            yield path.stem, path
        elif is_dicom(path):
            with_dicom.add(path.parent)
    for each in sorted(with_dicom):
        yield from ((name, files[0]) for name, files in dicom_slides(each).items())


def _named(path: Path) -> tuple[str, Path]:
    """Return the name of a slide that is given by one of its files, and the file it is opened by."""
    series = dicom_slides(path.parent) if is_dicom(path) else {}
    return next(((name, files[0]) for name, files in series.items() if path in files), (path.stem, path))


def slide_title(path: str | Path) -> str:
    """Return what messages call a slide: its file, and of DICOM, whose files have any names, its folder too."""
    path = Path(path)
    return f"{path.parent.name}/{path.name}" if path.suffix.lower() == DICOM_SUFFIX else path.name


def open_slide(path: Path) -> openslide.OpenSlide:
    """Open a slide whose header is plausible, or raise InputError."""
    name = slide_title(path)
    try:
        slide = openslide.OpenSlide(path)
        problem = _header_problem(slide)
    except openslide.OpenSlideError as error:
        reason = _without_folder(error, path)
        raise InputError(f"{name} is not a slide that OpenSlide reads ({reason}); remove or convert it") from error
    if problem:
        slide.close()
        raise InputError(f"{name} says that {problem}: it is damaged; copy it again or remove it")
    return slide


def _header_problem(slide: openslide.OpenSlide) -> str:
    """Return what in a header cannot be true; OpenSlide would end the process for want of memory, or read for hours."""
    width, height = slide.dimensions
    if width * height > MOST_PIXELS:
        return f"it has {width} × {height} pixels"
    for level, (across, down) in enumerate(slide.level_dimensions):
        sizes = [slide.properties.get(f"openslide.level[{level}].tile-{side}", "1") for side in ("width", "height")]
        if math.prod(map(int, sizes)) > MOST_PIXELS_OF_A_TILE:
            return f"its tiles have {' × '.join(sizes)} pixels"
        if min(across, down) > MORE_THAN_ROUNDING and not 0.5 < width / across * down / height < 2:
            return f"it has {width} × {height} pixels, and {across} × {down} when it is made smaller"
    return ""


def damaged(path: Path, error: openslide.OpenSlideError) -> InputError:
    """Return the error for a slide that could be opened and cannot be read."""
    return InputError(
        f"{slide_title(path)} is damaged ({_without_folder(error, path)}); copy or scan it again, or remove it"
    )


def _without_folder(error: openslide.OpenSlideError, path: Path) -> str:
    """Return the message on one line, without the folder, which may be named after a patient."""
    return " ".join(str(error).replace(f"{path.parent}{os.sep}", "").split())


def read_mpp(slide: openslide.OpenSlide, path: str | Path, otherwise: MicronsPerPixel | None) -> MicronsPerPixel:
    """Return what the slide states if that is plausible, else the value `otherwise` of the user."""
    name = slide_title(path)
    x, y = _stated(slide, openslide.PROPERTY_NAME_MPP_X), _stated(slide, openslide.PROPERTY_NAME_MPP_Y)
    low, high = PLAUSIBLE_MPP
    if low <= x <= high:
        if abs(y / x - 1) > SAME_SCALE:
            pixels = f"pixels of {x:g} × {y:g} micrometres"
            raise InputError(f"{name} has {pixels}: convert it to square pixels, or remove it")
        return MicronsPerPixel(x)
    if otherwise is None:
        text = str(slide.properties.get(openslide.PROPERTY_NAME_MPP_X, ""))[:20]
        found = repr(text) if text else "no"
        raise InputError(f"{name} states {found} micrometres per pixel: say how many it has with --slide_mpp")
    return otherwise


def read_origin(slide: openslide.OpenSlide) -> tuple[int, int]:
    """Return the corner of the scanned bounds, which other programs take for 0, 0; (0, 0) where a slide states none."""
    x, y = _stated(slide, openslide.PROPERTY_NAME_BOUNDS_X), _stated(slide, openslide.PROPERTY_NAME_BOUNDS_Y)
    return (int(x), int(y)) if math.isfinite(x) and math.isfinite(y) else (0, 0)


def _stated(slide: openslide.OpenSlide, name: str) -> float:
    try:
        return float(slide.properties[name])
    except (KeyError, ValueError):
        return math.nan


def best_level(downsamples: Sequence[float], wanted: float) -> int:
    """Return the level with the largest downsample not above the wanted one: the smallest that has the detail."""
    fine_enough = [level for level, downsample in enumerate(downsamples) if downsample <= wanted * (1 + SAME_SCALE)]
    return max(fine_enough, key=lambda level: downsamples[level], default=0)


def plan_tiles(
    slide: openslide.OpenSlide,
    path: str | Path,
    tile_size: int,
    overlap: int,
    mpp: MicronsPerPixel,
    slide_mpp: MicronsPerPixel,
) -> TilePlan:
    """Plan how to read tiles of `tile_size` pixels at `mpp` of a slide with `slide_mpp` at level 0."""
    downsample = mpp / slide_mpp
    if downsample * MOST_ENLARGEMENT < 1:
        coarse = f"{slide_mpp:g} micrometres per pixel, coarser than mpp {mpp:g}"
        raise InputError(f"{slide_title(path)} has {coarse}; choose a larger one")
    level = best_level(slide.level_downsamples, downsample)
    scale = downsample / slide.level_downsamples[level]
    return TilePlan(
        level=level,
        side=tile_size if abs(scale - 1) < SAME_SCALE else tile_size * scale,
        pixels=tile_size,
        tile=Level0Pixels(tile_size * downsample),
        pitch=Level0Pixels((tile_size - overlap) * downsample),
    )


def read_square(
    slide: openslide.OpenSlide, corner: tuple[int, int], level: int, side: float, pixels: int
) -> np.ndarray:
    """Return (pixels, pixels, 3) uint8 of a square; `corner` is in level-0 pixels, `side` in those of the level."""
    whole = math.ceil(side)
    region = slide.read_region(corner, level, (whole, whole))
    if region.getchannel("A").getextrema() != (255, 255):  # what was never scanned is transparent, else it were black
        region = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region)
    image = region.convert("RGB")
    if side != pixels:  # PIL averages over all it covers
        image = image.resize((pixels, pixels), Image.Resampling.BILINEAR, box=(0, 0, side, side))
    return np.asarray(image)


def read_overview(
    slide: openslide.OpenSlide,
    downsample: float,
    origin: tuple[int, int] = (0, 0),
    sides: tuple[int, int] | None = None,
) -> np.ndarray:
    """Return (h, w, 3) uint8 of the slide, or of `sides` of it from `origin` on, both in level-0 pixels.

    One pixel is for `downsample` level-0 pixels.
    """
    width, height = (math.ceil(side / downsample) for side in sides or slide.dimensions)
    level = best_level(slide.level_downsamples, downsample)
    scale = downsample / slide.level_downsamples[level]
    block = min(max(1, int(BLOCK_PIXELS / scale)), max(width, height))
    overview = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, block):
        for left in range(0, width, block):
            corner = (origin[0] + round(left * downsample), origin[1] + round(top * downsample))
            square = read_square(slide, corner, level, block * scale, block)
            part = overview[top : top + block, left : left + block]
            part[:] = square[: part.shape[0], : part.shape[1]]
    return overview


@dataclass(frozen=True)
class SlideFacts:
    """The metadata of a slide."""

    path: Path
    size: tuple[int, int]  # width, height in level-0 pixels
    mpp: MicronsPerPixel | None
    origin: tuple[int, int]  # of its bounds
    scanned: tuple[int, int]  # width and height of its bounds; some slides are mostly empty canvas

    def require_same(self, header: FeatureHeader, coords: np.ndarray) -> None:
        """Refuse features of another slide with the same name; coords: (N, 2) in level-0 pixels.

        A patch may overhang the edge, as those of CLAM and TRIDENT do, but none begins outside.
        """
        if header.slide_size not in (None, self.size) or (coords >= self.size).any():
            problem = f"has {' × '.join(map(str, self.size))} pixels, and its features are of another slide's"
            raise InputError(f"{slide_title(self.path)} {problem}: give the slide that they were made of")


class SlideFolder:
    """Finds slides by name in a folder or below it; without a folder, none."""

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

    def completed(self, patches: SlidePatches, slide_mpp: float | None = None) -> SlidePatches:
        """Add what features lack, from the slide (or a warning), else from the user; micrometres become pixels."""
        header = patches.header
        if None not in (header.slide_size, header.mpp, header.origin):
            return patches
        try:
            return _completed(patches, self.find(header.slide_id, patches.source), slide_mpp)
        except InputError as error:
            return replace(_completed(patches, None, slide_mpp), warnings=(str(error),))

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """The file of every slide by its name; of two with one name, that of the upper folder."""
        slides = sorted(_slides_below(Path(self.folder or ".")), key=lambda slide: (len(slide[1].parts), slide[1]))
        found = dict(reversed(slides))
        # TRIDENT calls the features of x.ome.tif x
        return {name.removesuffix(".ome"): path for name, path in found.items()} | found


def read_facts(path: Path) -> SlideFacts:
    """Read the metadata of a slide."""
    with open_slide(path) as slide:
        try:
            mpp, origin = read_mpp(slide, path, MicronsPerPixel(math.nan)), read_origin(slide)
            scanned = scanned_sides(slide.properties, origin, slide.dimensions)
            return SlideFacts(path, slide.dimensions, None if math.isnan(mpp) else mpp, origin, scanned)
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


def _completed(patches: SlidePatches, slide: SlideFacts | None, slide_mpp: float | None) -> SlidePatches:
    header, coords = patches.header, patches.coords
    stated = (header.mpp, slide.mpp if slide else None, slide_mpp)
    mpp = next((MicronsPerPixel(each) for each in stated if each is not None), None)
    header = replace(header, mpp=mpp)
    if header.unit == MICROMETRES and mpp is not None:
        pitch, tile = Level0Pixels(header.pitch / mpp), Level0Pixels(header.tile / mpp)
        header = replace(header, unit=PIXELS, pitch=pitch, tile=tile)
        coords = np.rint(coords / mpp).astype(np.int64)
    if slide is not None:
        if header.unit == PIXELS:
            slide.require_same(header, coords)
        header = replace(header, slide_size=slide.size, origin=header.origin or slide.origin)
    return replace(patches, header=header, coords=coords)
