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

"""From slides to features: find the tissue, cut it into tiles, encode each tile, keep one file per slide."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from scripts.data.feature_files import encode
from scripts.data.features import PatchFeatures, read_header, write_features
from scripts.errors import InputError
from scripts.files import writable_folder
from scripts.units import Level0Coords, Level0Pixels, MicronsPerPixel

SLIDE_SUFFIXES = frozenset({".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide"})
SAME_SCALE = 0.02  # scanners write 0.499 or 0.2527 for 0.5 and 0.25: resampling for that would only blur
MOST_ENLARGEMENT = 1.1  # a tile enlarged further shows detail that the slide never had
PLAUSIBLE_MPP = (0.02, 20.0)  # beyond lies the 72 dpi that image programs write into a TIFF
LEAST_CHROMA = 15  # max less min of red, green, blue: glass, shadow and black borders are grey, stains are not
MASK_PIXELS = 8  # pixels of the tissue mask along a tile: 16 micrometres each for 256 pixels at 0.5
BLOCK_PIXELS = 2048  # an overview is read in blocks of this side: a level may be larger than the memory
THUMBNAIL_SIDE = 768

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TilePlan:
    """How the tiles of one slide are read."""

    level: int
    side: int  # pixels to read at that level
    pixels: int  # pixels the encoder takes
    tile: Level0Pixels
    pitch: Level0Pixels


class FeatureExtractor:
    """Writes ``output_dir/<slide name>.h5`` for each slide of a directory; a slide that has its file is skipped.

    Args:
        slides: directory of the slides.
        output_dir: directory of the feature files, made if absent.
        encoder: network from [B, 3, tile_size, tile_size] in 0..1 to [B, D].
        encoder_name: written into the files, which are refused when extraction goes on with another encoder.
        tile_size: side of a tile in pixels at ``mpp``.
        mpp: micrometres per pixel of the tiles.
        overlap: pixels that two neighbouring tiles share.
        slide_mpp: micrometres per pixel of the slides that do not state theirs.
        batch_size: tiles per call of the encoder.
        device: where the encoder runs.
        num_workers: threads that read tiles.
        tissue_threshold: the least fraction of a tile that is tissue.
    """

    def __init__(
        self,
        slides: str | Path,
        output_dir: str | Path,
        encoder: torch.nn.Module,
        encoder_name: str,
        tile_size: int = 256,
        mpp: float = 0.5,
        overlap: int = 0,
        slide_mpp: float | None = None,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        num_workers: int = 4,
        tissue_threshold: float = 0.5,
    ) -> None:
        if not 0 <= overlap < tile_size:
            raise InputError(f"overlap is {overlap}; choose it from 0 to below the tile_size of {tile_size}")
        self.slides = Path(slides)
        self.output_dir = Path(output_dir)
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device).eval()
        self.encoder_name = encoder_name
        self.tile_size = tile_size
        self.mpp = MicronsPerPixel(mpp)
        self.overlap = overlap
        self.slide_mpp = None if slide_mpp is None else MicronsPerPixel(slide_mpp)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.tissue_threshold = tissue_threshold

    def run(self) -> None:
        """Encode every slide that has no feature file yet."""
        paths = find_slides(self.slides)
        writable_folder(self.output_dir)
        # the encoder is tried before hours of reading, and a slide without tissue needs its dimension too
        dimension = self._encode(np.zeros((1, self.tile_size, self.tile_size, 3), np.uint8)).shape[1]
        done = skipped = 0
        for path in tqdm(paths, desc="slides", unit="slide"):
            output = self.output_dir / f"{path.stem}.h5"
            if output.exists():
                self._refuse_other_settings(output)
                skipped += 1
                continue
            write_features(output, self.extract(path, dimension))
            done += 1
        logger.info("%d slides done, %d skipped (their feature files exist)", done, skipped)

    def extract(self, path: Path, dimension: int) -> PatchFeatures:
        """The features of one slide, (0, dimension) if it has no tissue."""
        with open_slide(path) as slide:
            mpp = read_mpp(slide, path, self.slide_mpp)
            plan = plan_tiles(slide, path, self.tile_size, self.overlap, self.mpp, mpp)
            try:
                coords = tissue_tiles(slide, plan, self.tissue_threshold)
                if len(coords) == 0:
                    logger.warning("%s: no tile is tissue; its feature file holds no patches", path)
                # closing: the threads must have stopped before the slide is closed, also when the encoder fails
                with closing(self._read_tiles(slide, coords, plan)) as batches:
                    encoded = [self._encode(tiles) for tiles in batches]
                downsample = max(max(slide.dimensions) / THUMBNAIL_SIDE, 1.0)
                thumbnail = read_overview(slide, downsample)
            except openslide.OpenSlideError as error:
                raise InputError(f"{path} is damaged ({error}); copy or scan it again, or remove it") from error
            features = np.concatenate([np.zeros((0, dimension), np.float16), *encoded])
            return PatchFeatures(
                features=features,
                coords=coords,
                pitch=plan.pitch,
                tile=plan.tile,
                mpp=mpp,
                encoder=self.encoder_name,
                slide_id=path.stem,
                slide_size=slide.dimensions,
                thumbnail=thumbnail,
                thumbnail_downsample=downsample,
            )

    def _read_tiles(
        self, slide: openslide.OpenSlide, coords: Level0Coords, plan: TilePlan
    ) -> Generator[np.ndarray, None, None]:
        """Batches (B, t, t, 3) in order; as many as there are threads are read ahead, while the encoder works."""
        starts = range(0, len(coords), self.batch_size)
        pending: deque[Future[np.ndarray]] = deque()
        with ThreadPoolExecutor(self.num_workers) as threads:
            for start in starts:
                chunk = Level0Coords(coords[start : start + self.batch_size])
                pending.append(threads.submit(_read_batch, slide, chunk, plan))
                if len(pending) > self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _encode(self, tiles: np.ndarray) -> np.ndarray:
        images: Tensor = torch.from_numpy(tiles).to(self.device).permute(0, 3, 1, 2).float().div(255)
        return encode(self.encoder, self.encoder_name, images, torch.float16)

    def _refuse_other_settings(self, output: Path) -> None:
        """Features of two kinds in one directory would be trained on as if they were one."""
        header = read_header(output)
        wanted = self.tile_size * self.mpp  # micrometres
        tile_differs = header.mpp is not None and not np.isclose(header.tile * header.mpp, wanted)
        pitch_differs = not np.isclose(header.pitch / header.tile, 1 - self.overlap / self.tile_size)
        if header.encoder != self.encoder_name or tile_differs or pitch_differs:
            raise InputError(
                f"{output} was made with another encoder, tile_size, mpp or overlap (encoder {header.encoder}); "
                "choose another output_dir"
            )


def find_slides(directory: str | Path) -> list[Path]:
    """The slides of a directory in order of their names, which must differ: each names a feature file."""
    if not Path(directory).is_dir():
        raise InputError(f"no directory of slides {directory}; put them there, or give theirs with --slides")
    paths = sorted(path for path in Path(directory).iterdir() if path.suffix.lower() in SLIDE_SUFFIXES)
    if not paths:
        raise InputError(
            f"no slide in {directory} ({' '.join(sorted(SLIDE_SUFFIXES))}); "
            "put slides there, or give their folder with --slides"
        )
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(path.stem, path)
        if other != path:
            raise InputError(f"{other} and {path} would both be written as {path.stem}.h5; rename one of them")
    return paths


def open_slide(path: str | Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise InputError(f"{path} is not a slide that OpenSlide reads ({error}); remove or convert it") from error


def read_mpp(slide: openslide.OpenSlide, path: str | Path, otherwise: MicronsPerPixel | None) -> MicronsPerPixel:
    """What the slide states if it can be true, else what the user says."""
    stated = float(slide.properties.get(openslide.PROPERTY_NAME_MPP_X, "nan"))
    low, high = PLAUSIBLE_MPP
    if low <= stated <= high:
        return MicronsPerPixel(stated)
    if otherwise is None:
        found = "states no micrometres per pixel" if np.isnan(stated) else f"states {stated:g} micrometres per pixel"
        raise InputError(f"{path} {found}; pass `slide_mpp`")
    return otherwise


def best_level(downsamples: Sequence[float], wanted: float) -> int:
    """The smallest image that still has the detail: the largest downsample not above the wanted one."""
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
    downsample = mpp / slide_mpp
    if downsample * MOST_ENLARGEMENT < 1:
        raise InputError(
            f"{path} has {slide_mpp:g} micrometres per pixel, coarser than mpp {mpp:g}; choose a larger one"
        )
    level = best_level(slide.level_downsamples, downsample)
    scale = downsample / slide.level_downsamples[level]
    return TilePlan(
        level=level,
        side=tile_size if abs(scale - 1) < SAME_SCALE else round(tile_size * scale),
        pixels=tile_size,
        tile=Level0Pixels(tile_size * downsample),
        pitch=Level0Pixels((tile_size - overlap) * downsample),
    )


def read_square(slide: openslide.OpenSlide, corner: tuple[int, int], level: int, side: int, pixels: int) -> np.ndarray:
    """(pixels, pixels, 3) uint8 of a square whose corner is in level-0 pixels and whose side is in the level's."""
    region = slide.read_region(corner, level, (side, side))
    if region.getchannel("A").getextrema() != (
        255,
        255,
    ):  # what was never scanned is transparent, and black without this
        region = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region)
    image = region.convert("RGB")
    if side != pixels:
        image = image.resize((pixels, pixels), Image.Resampling.BILINEAR)  # PIL averages over all it covers
    return np.asarray(image)


def read_overview(slide: openslide.OpenSlide, downsample: float) -> np.ndarray:
    """(h, w, 3) uint8 of the whole slide, one pixel for ``downsample`` level-0 pixels."""
    width, height = (int(np.ceil(side / downsample)) for side in slide.dimensions)
    level = best_level(slide.level_downsamples, downsample)
    scale = downsample / slide.level_downsamples[level]
    block = max(1, int(BLOCK_PIXELS / scale))
    overview = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, block):
        for left in range(0, width, block):
            corner = (round(left * downsample), round(top * downsample))
            square = read_square(slide, corner, level, round(block * scale), block)
            part = overview[top : top + block, left : left + block]
            part[:] = square[: part.shape[0], : part.shape[1]]
    return overview


def tissue_mask(image: np.ndarray) -> np.ndarray:
    """(h, w) bool of an (h, w, 3) uint8 image: where there is colour.

    Not MONAI's ForegroundMask: in colour it needs scikit-image, Otsu's threshold finds tissue on empty glass, and a
    threshold on brightness takes the black around a scan for tissue.
    """
    return np.ptp(image, axis=2) > LEAST_CHROMA


def tissue_tiles(slide: openslide.OpenSlide, plan: TilePlan, threshold: float) -> Level0Coords:
    """The tiles, row by row, that lie wholly in the slide and are tissue for at least the threshold."""
    width, height = slide.dimensions
    if min(width, height) < plan.tile:
        return Level0Coords(np.zeros((0, 2), np.int64))
    downsample = plan.tile / MASK_PIXELS
    mask = torch.from_numpy(tissue_mask(read_overview(slide, downsample))).float()
    tissue = avg_pool2d(mask[None], MASK_PIXELS, stride=1)[0].numpy()  # of the tile whose first mask pixel is here
    x, y = _starts(width, plan), _starts(height, plan)
    fraction = tissue[np.ix_(np.rint(y / downsample).astype(int), np.rint(x / downsample).astype(int))]
    row, column = np.nonzero(fraction >= threshold)
    return Level0Coords(np.rint(np.stack([x[column], y[row]], axis=1)).astype(np.int64))


def _starts(length: int, plan: TilePlan) -> np.ndarray:
    """Where the tiles of one row or column begin, in level-0 pixels."""
    rounding = 1e-6  # a tile that fits to the pixel must not be lost to floating point
    return np.arange(int((length - plan.tile) / plan.pitch + rounding) + 1) * plan.pitch


def _read_batch(slide: openslide.OpenSlide, coords: Level0Coords, plan: TilePlan) -> np.ndarray:
    return np.stack([read_square(slide, (x, y), plan.level, plan.side, plan.pixels) for x, y in coords.tolist()])
