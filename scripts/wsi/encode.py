# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""From slides to features: find the tissue, cut it into tiles, encode each tile, keep one file per slide."""

import csv
import json
import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from torch import Tensor, nn
from tqdm import tqdm

from scripts.core.cli import PROGRESS_AFTER_S, yes_or_no
from scripts.core.errors import InputError
from scripts.core.files import whole_file, writable_folder, write_whole
from scripts.core.units import Level0Coords, MicronsPerPixel
from scripts.engine.extraction import Share, encode, refuse_changes, tell_failures
from scripts.wsi.features.files import read_own_header
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from scripts.wsi.slides.artefacts import Artefact
from scripts.wsi.slides.overlay import draw_tissue
from scripts.wsi.slides.slide import (
    TilePlan,
    damaged,
    find_slides,
    open_slide,
    plan_tiles,
    read_mpp,
    read_origin,
    read_overview,
    read_square,
    slide_title,
)
from scripts.wsi.slides.tissue import (
    LITTLE_TISSUE,
    NO_TISSUE,
    ChromaMask,
    TileFinder,
    TissueMap,
    TissueMask,
    tissue_mask,
)

SETTINGS, WEIGHTS = "settings.json", "encoder_weights"
BEFORE_0_12: Mapping[str, Any] = {"overhang": False, "leave_out": {}}  # what settings.json did not state
TISSUE = "tissue"  # a share of a slide, and the folder of what tissue_only writes
THUMBNAIL_SIDE = 768
USUAL_MPP = MicronsPerPixel(0.5)

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class FeatureExtractor:
    """Writes ``output_dir/<slide name>.h5`` for each slide; a slide that has its file is skipped.

    A slide that cannot be read is left out, and reported at the end. Where several processes run (torchrun), each takes
    its share of the slides.

    Args:
        slides: folder of the slides, at any depth, or a list of their paths.
        output_dir: directory of the feature files, made if absent.
        encoder: network from [B, 3, tile_size, tile_size] in 0..1 to [B, D] or [B, D, 1, 1].
        encoder_name: written into the files, which are refused when extraction goes on with another encoder.
        tile_size: side of a tile in pixels at ``mpp``.
        mpp: micrometres per pixel of the tiles.
        overlap: pixels that two neighbouring tiles share.
        slide_mpp: micrometres per pixel of the slides that do not state theirs.
        tissue: RGB image [3, h, w] → mask [1, h, w], such as MONAI's ForegroundMask; else colour.
        tissue_threshold: the least fraction of a tile that is tissue.
        overhang: whether tiles overhang the right and the lower edge of a slide, white where they do.
        leave_out: name → rule of what is not to be encoded, such as ink; one that is None is passed over.
        tissue_only: encode nothing, and write ``output_dir/tissue/<slide name>.png`` and a table instead.
        batch_size: tiles per call of the encoder.
        num_workers: threads that read tiles.
        device: where the encoder runs.
        amp: mixed precision, on a GPU alone.
    """

    slides: str | Path | Sequence[str | Path]
    output_dir: str | Path
    encoder: nn.Module
    encoder_name: str
    tile_size: int = 256
    mpp: MicronsPerPixel = USUAL_MPP
    overlap: int = 0
    slide_mpp: MicronsPerPixel | None = None
    tissue: TissueMask | None = None
    tissue_threshold: float = 0.1
    overhang: bool = True
    leave_out: Mapping[str, Artefact | None] | None = None
    tissue_only: bool = False
    batch_size: int = 64
    num_workers: int = 2
    device: torch.device | str = "cpu"
    amp: bool = False

    def __post_init__(self) -> None:
        mpp, slide_mpp = self.mpp, self.slide_mpp
        if not self.encoder_name:
            raise InputError("the encoder does not say its name: give one that names its weights (--encoder_name NAME)")
        if min(self.tile_size, self.batch_size, self.num_workers) < 1:
            raise InputError("tile_size, batch_size and num_workers must be 1 or more; correct them")
        if not 0 <= self.overlap < self.tile_size:
            raise InputError(f"overlap is {self.overlap}; choose it from 0 to below the tile_size of {self.tile_size}")
        if not 0 <= self.tissue_threshold <= 1:
            raise InputError(f"tissue_threshold is {self.tissue_threshold}; it is a fraction of a tile, from 0 to 1")
        if not (0 < mpp < math.inf and (slide_mpp is None or 0 < slide_mpp < math.inf)):
            raise InputError(f"mpp is {mpp} and slide_mpp {slide_mpp}; give micrometres per pixel, such as 0.5")
        rules = _rules(self.leave_out)
        device = torch.device(self.device)
        self.folder = Path(self.output_dir)
        tissue = ChromaMask() if self.tissue is None else self.tissue
        self.finder = TileFinder(tissue, self.tissue_threshold, yes_or_no(self.overhang, "overhang"), rules)
        self.tissue_only = yes_or_no(self.tissue_only, "tissue_only")
        # a GPU works while threads read ahead; an encoder on the same processor only gets in their way, and they in its
        self.ahead = 0 if device.type == "cpu" else self.num_workers
        self.share = Share()
        self.settings: dict[str, Any] = {
            "encoder": self.encoder_name,
            "encoder_input": self.encoder.extra_repr(),
            WEIGHTS: getattr(self.encoder, "weights", None),  # which a name that was given does not tell
            "tile_size": self.tile_size,
            "mpp": mpp,
            "overlap": self.overlap,
            **self.finder.settings,
        }
        self.encoder = _TileEncoding(self.encoder, device, self.amp).eval()

    def run(self) -> None:
        """Encode every slide that has no feature file yet; or only look for the tissue of every slide."""
        slides = find_slides(self.slides)
        mine = dict(self.share.of(list(slides.items())))
        number = f"{len(slides if self.share.joined else mine)} slides"
        self._try_mask()
        if self.tissue_only:
            self._look_at(mine, number)
            return
        writable_folder(self.folder)
        self._keep_settings()
        dimension = self._try_out()
        left = {name: path for name, path in mine.items() if not self._is_done(name, path)}

        def write(name: str, path: Path) -> None:
            write_features(self.folder / f"{name}.h5", self.extract(name, path, dimension))

        failures = self._each(left, write)
        done, skipped = len(left) - len(failures), len(mine) - len(left)
        counts = f"{done} done, {skipped} skipped (already there), {len(failures)} failed"
        logger.info("slides: %s; features in %s", counts, self.folder)
        failures = self.share.gathered(failures)
        if self.share.speaks:
            tell_failures(self.folder / self._table("failed"), failures, "slide", number)

    def _look_at(self, slides: Mapping[str, Path], number: str) -> None:
        """Write a picture of the tissue and the tiles of each slide, and a table of all; nothing is encoded."""
        folder = writable_folder(self.folder / TISSUE)
        mine: list[dict[str, Any]] = []

        def look(name: str, path: Path) -> None:
            with open_slide(path) as slide:
                plan, _ = self._plan(slide, path)
                tissue = self._tissue(slide, path, plan)
            draw_tissue(folder / f"{name}.png", name, tissue, plan.tile)
            shares = {each: f"{share:.4f}" for each, share in tissue.shares.items()}
            counts = {f"left_out_{reason.replace(' ', '_')}": count for reason, count in tissue.counts.items()}
            mine.append({"slide": name, "tiles": len(tissue.tiles), **shares, **counts})

        failed = self._each(slides, look)
        told = self.share.gathered({str(self.share.rank): json.dumps([mine, failed])})
        if not self.share.speaks:
            return
        parts = [json.loads(part) for part in told.values()]
        rows = sorted((row for part, _ in parts for row in part), key=lambda row: str(row["slide"]))
        failures = {title: why for _, part in parts for title, why in part.items()}
        with whole_file(folder / self._table(TISSUE)) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]) if rows else ["slide"], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        logger.info("slides: %d looked at, %d failed; their tissue is drawn in %s", len(rows), len(failures), folder)
        tell_failures(folder / self._table("failed"), failures, "slide", number, "the others are drawn")

    def _each(self, slides: Mapping[str, Path], work: Callable[[str, Path], None]) -> dict[str, str]:
        """Do the work on each slide, and return why it could not be done on some."""
        failures = {}
        title = "slides" if self.share.processes == 1 else f"slides of process {self.share.rank}"
        for name, path in tqdm(slides.items(), desc=title, unit="slide"):
            try:
                work(name, path)
            except InputError as error:
                called = slide_title(path)
                failures[called if called not in failures else f"{called} ({name})"] = str(error)
        return failures

    def _table(self, name: str) -> str:
        """Return the name of a table of all slides, or of those of this process where it speaks for itself."""
        return f"{name}.csv" if self.share.joined else f"{name}_{self.share.rank}.csv"

    def _plan(self, slide: openslide.OpenSlide, path: Path) -> tuple[TilePlan, MicronsPerPixel]:
        mpp = read_mpp(slide, path, self.slide_mpp)
        return plan_tiles(slide, path, self.tile_size, self.overlap, self.mpp, mpp), mpp

    def _tissue(self, slide: openslide.OpenSlide, path: Path, plan: TilePlan) -> TissueMap:
        """Return the tissue of a slide, having told how much there is and what is left out of it."""
        try:
            found = self.finder.find(slide, plan)
        except openslide.OpenSlideError as error:
            raise damaged(path, error) from error
        shares = ", ".join(f"{share:.1%} {name}" for name, share in found.shares.items())
        logger.info("%s: %d of %d tiles; of the slide %s", slide_title(path), len(found.tiles), len(found.grid), shares)
        for artefact in found.left_out:
            if found.shares[artefact] > found.shares[TISSUE]:
                remedy = f"look at it with --tissue_only true, or give --leave_out#{artefact} null"
                logger.warning("%s: more is left out as %s than is tissue; %s", slide_title(path), artefact, remedy)
        if len(found.tiles) == 0:
            what = "none would be encoded" if self.tissue_only else "its feature file holds no patches"
            logger.warning("%s: no tile is tissue; %s", slide_title(path), what)
        return found

    def extract(self, name: str, path: Path, dimension: int) -> PatchFeatures:
        """Return the features of one slide, (0, dimension) if it has no tissue."""
        with open_slide(path) as slide:
            plan, mpp = self._plan(slide, path)
            tissue = self._tissue(slide, path, plan)
            coords = tissue.tiles
            try:
                # closing: the threads must have stopped before the slide is closed, also when the encoder fails
                with closing(self._read_tiles(slide, coords, plan)) as batches:
                    count = math.ceil(len(coords) / self.batch_size)
                    bar = tqdm(batches, "batches of tiles", count, leave=False, delay=PROGRESS_AFTER_S)
                    encoded = [self._encode(tiles) for tiles in bar]
                downsample = max(max(slide.dimensions) / THUMBNAIL_SIDE, 1.0)
                thumbnail = read_overview(slide, downsample)
            except openslide.OpenSlideError as error:
                raise damaged(path, error) from error
            return PatchFeatures(
                features=np.concatenate([np.zeros((0, dimension), np.float16), *encoded]),
                coords=coords,
                pitch=plan.pitch,
                tile=plan.tile,
                mpp=mpp,
                encoder=self.encoder_name,
                slide_id=name,
                slide_size=slide.dimensions,
                origin=read_origin(slide),
                thumbnail=thumbnail,
                thumbnail_downsample=downsample,
                shares=tissue.shares,
            )

    def _read_tiles(
        self, slide: openslide.OpenSlide, coords: Level0Coords, plan: TilePlan
    ) -> Generator[np.ndarray, None, None]:
        """Yield batches (B, t, t, 3) in order; all threads read at one batch, so that the encoder waits less for it."""

        def read(part: np.ndarray) -> np.ndarray:
            corners = part.tolist()
            return np.stack([read_square(slide, (x, y), plan.level, plan.side, plan.pixels) for x, y in corners])

        pending: deque[list[Future[np.ndarray]]] = deque()
        with ThreadPoolExecutor(self.num_workers) as threads:
            for start in range(0, len(coords), self.batch_size):
                batch = coords[start : start + self.batch_size]
                parts = np.array_split(batch, min(self.num_workers, len(batch)))
                pending.append([threads.submit(read, part) for part in parts])
                if len(pending) > self.ahead:
                    yield np.concatenate([part.result() for part in pending.popleft()])
            while pending:
                yield np.concatenate([part.result() for part in pending.popleft()])

    def _encode(self, tiles: np.ndarray) -> np.ndarray:
        return encode(self.encoder, self.encoder_name, torch.from_numpy(tiles), torch.float16)

    def _try_mask(self) -> None:
        tissue = self.finder.tissue
        try:
            tissue_mask(self._glass(), tissue)
        except ImportError as error:
            raise InputError(f"{type(tissue).__name__} as given needs scikit-image: pip install it") from error

    def _try_out(self) -> int:
        """Return the number of features; what cannot work is reported before hours of reading."""
        try:
            return self._encode(self._glass()[None]).shape[1]
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"encoder {self.encoder_name} takes no tiles of {self.tile_size} × {self.tile_size} pixels "
                f"({' '.join(str(error).split())[:200]}); give another tile_size, or the `size` that it takes"
            ) from error

    def _glass(self) -> np.ndarray:
        return np.full((self.tile_size, self.tile_size, 3), 255, np.uint8)

    def _keep_settings(self) -> None:
        """Refuse to add features of another kind to a directory: they would be trained on as if they were one."""
        kept, now = self.folder / SETTINGS, json.dumps(self.settings, indent=1)
        if not kept.exists() or not any(self.folder.glob("*.h5")):
            write_whole(kept, now + "\n")
            return
        try:
            unstated = {**BEFORE_0_12, WEIGHTS: self.settings[WEIGHTS]}
            then = {**unstated, **json.loads(kept.read_text(encoding="utf-8"))}
        except (ValueError, TypeError) as error:
            raise InputError(f"{kept} is damaged; choose another output_dir") from error
        keys = ("tile_size", "mpp", "overlap", "tissue_threshold", "overhang")
        as_before = {key: f"--{key} {then[key]}" for key in keys if key in then}
        if not then["leave_out"]:
            as_before["leave_out"] = "--leave_out null"
        refuse_changes(kept, then, json.loads(now), as_before)

    def _is_done(self, name: str, slide: Path) -> bool:
        """Return whether a slide has its file; one from elsewhere with features of another kind is refused."""
        file = self.folder / f"{name}.h5"
        if not file.exists():
            return False
        header = read_own_header(file)
        then: dict[str, Any] = {"encoder": header.encoder, "pitch in tiles": header.pitch / header.tile}
        now: dict[str, Any] = {"encoder": self.encoder_name, "pitch in tiles": 1 - self.overlap / self.tile_size}
        if header.mpp is not None:
            then["micrometres of a tile"] = header.tile * header.mpp
            now["micrometres of a tile"] = self.tile_size * self.mpp
        if self.slide_mpp is not None:
            with open_slide(slide) as opened:
                then["slide_mpp"], now["slide_mpp"] = header.mpp, read_mpp(opened, slide, self.slide_mpp)
        refuse_changes(file, then, now)
        return True


def _rules(leave_out: Any) -> Mapping[str, Artefact | None]:
    """Return the rules of `leave_out`; from the command line null comes as a text, as MONAI passes no None on."""
    rules = {} if leave_out in (None, "null") else leave_out
    if isinstance(rules, Mapping):
        rules = {name: None if rule == "null" else rule for name, rule in rules.items()}
        if taken := {"", "slide", "tiles", TISSUE, NO_TISSUE, LITTLE_TISSUE} & rules.keys():
            raise InputError(f"leave_out has a rule called {min(taken)!r}, which has a meaning already: rename it")
        if all(rule is None or callable(rule) for rule in rules.values()):
            return rules
    raise InputError(f"leave_out is {leave_out!r}; give rules by their names, or null for it or for one of them")


class _TileEncoding(nn.Module):
    """An encoder, on its device, of tiles as they are read: (B, t, t, 3) uint8 → features [B, D]."""

    def __init__(self, encoder: nn.Module, device: torch.device, amp: bool) -> None:
        super().__init__()
        self.encoder = encoder.to(device)
        self.device = device
        self.amp = amp and device.type == "cuda"

    def forward(self, tiles: Tensor) -> Tensor:
        images = tiles.to(self.device).permute(0, 3, 1, 2).float().div(255)
        with torch.autocast(self.device.type, enabled=self.amp):
            features = self.encoder(images)
        if not isinstance(features, Tensor):
            raise InputError(f"the encoder gave a {type(features).__name__}; it must give one tensor [B, D]")
        return features.flatten(1) if features.shape[2:] == (1, 1) else features
