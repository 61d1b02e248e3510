# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Extraction of features and inference of slides, timed beside their bare parts: reading tiles and the encoder."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tifffile
import torch
from monai.bundle import ConfigParser
from PIL import Image
from torch import Tensor

from benchmarks.bags import tissue
from benchmarks.ct import medians, run_in_parts
from demo.slides import paint_slide, plan_slide
from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.wsi.encode import FeatureExtractor
from scripts.wsi.features.files import open_features
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from scripts.wsi.slides.slide import find_slides, open_slide

ROOT = Path(__file__).parents[1]
SEED = 0
CONFIGS = ROOT / "configs" / "wsi"
BUNDLE = ROOT / "bundle" / "pathology_wsi_smooth_mil"
TILE = 256
MPP = 0.5
WORKERS = 2


class Extraction:
    """Runs of `features.json` on slides of tissue everywhere, whose tiles are those of their TIFF.

    Args:
        folder: Of the slides and the features; filled on first use.
        slides: How many.
        tiles: Of all of them together, a square number of each; those of glass are left out.
        overrides: Config files besides features.json, such as encoder_monai.json.
    """

    def __init__(self, folder: str, slides: int, tiles: int, overrides: Sequence[str]) -> None:
        self.slides, self.features = Path(folder) / "slides", Path(folder) / "features"
        self.configs = [str(CONFIGS / name) for name in ("features.json", *overrides)]
        if not self.slides.exists():
            _write_slides(self.slides, slides, round((tiles / slides) ** 0.5))
        self.extractor = self._extractor()
        self.paths = find_slides(self.slides)

    def run(self) -> None:
        """Every slide, and the files written."""
        for file in self.features.glob("*"):
            file.unlink()
        self.extractor.run()

    def tiles(self) -> int:
        """How many the last run has encoded."""
        return sum(len(coords) for coords in self._coords())

    @torch.inference_mode()
    def bare(self) -> dict[str, float]:
        """Seconds of reading each tile of the last run by OpenSlide alone, one by one, and of the encoder on them."""
        encoder, size = self.extractor.encoder.get_submodule("encoder"), self.extractor.batch_size
        reading = encoding = 0.0
        for path, coords in zip(self.paths.values(), self._coords(), strict=True):
            with open_slide(path) as slide:
                for start in range(0, len(coords), size):
                    began = time.perf_counter()
                    regions = [slide.read_region(place, 0, (TILE, TILE)) for place in coords[start : start + size]]
                    reading += time.perf_counter() - began
                    images = _images(regions)
                    began = time.perf_counter()
                    encoder(images)
                    encoding += time.perf_counter() - began
        return {"reading": reading, "encoder": encoding}

    def _coords(self) -> list[list[tuple[int, int]]]:
        found = []
        for name in self.paths:
            with open_features(self.features / f"{name}.h5") as file:
                found.append([(x, y) for x, y in file.coords.tolist()])
        return found

    def _extractor(self) -> FeatureExtractor:
        parser = ConfigParser()
        parser.read_config(self.configs)
        settings = {"slides": str(self.slides), "output_dir": str(self.features), "device": "cpu"}
        parser.update({**settings, "tile_size": TILE, "mpp": MPP, "num_workers": WORKERS})
        extractor: FeatureExtractor = parser.get_parsed_content("extractor")
        return extractor


def extraction_profile(
    folder: str, slides: int = 2, tiles: int = 1200, overrides: Sequence[str] = (), calls: int = 3, untimed: int = 1
) -> dict[str, Any]:
    """Tiles per second of the whole and of the bare parts in sequence, and the share of the latter it reaches."""
    extraction = Extraction(folder, slides, tiles, overrides)
    whole, bare, shares = [], [], []
    for _ in range(untimed + calls):  # in turn, so that a change of the machine's pace meets both
        whole.append({"all": _seconds(extraction.run)})
        bare.append(extraction.bare())
        shares.append(sum(bare[-1].values()) / whole[-1]["all"])
    count, seconds, parts = extraction.tiles(), medians(whole[untimed:]), medians(bare[untimed:])
    return {
        "tiles": count,
        "tiles per second": count / seconds["all"],
        "bound": count / sum(parts.values()),
        "share of the bound": median(shares[untimed:]),
        "whole": seconds,
        "bare": parts,
    }


def inference_profile(
    folder: str, patches: int, columns: int = 1024, calls: int = 3, untimed: int = 1
) -> dict[str, Any]:
    """Seconds of `inference.json` on one slide, from its feature file to the last file written, and of its parts."""
    home = Path(folder)
    if not home.joinpath("features").exists():
        _write_features(home / "features" / "slide.h5", patches, columns)
    parts = [_read(home, columns) for _ in range(untimed + calls)][untimed:]
    whole = [{"all": sum(each.values())} for each in parts]
    return {"patches": patches, "whole": medians(whole), "part of it": medians(parts)}


def _read(home: Path, columns: int) -> dict[str, float]:
    """A run as a person would start it, its libraries and network already loaded."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    keys = {"dataset_dir": str(home / "features"), "output_dir": str(home / "results"), "in_features": columns}
    keys |= {"bundle_root": str(BUNDLE), "ckpt_path": str(home / "model.pt"), "device": "cpu", "amp": False}
    # positive, so that there are patches to flag and regions to merge
    parser.update({**keys, "threshold": 0.0, "skip_finished": False})
    if not (home / "model.pt").exists():
        torch.manual_seed(SEED)
        torch.save(parser.get_parsed_content("network_def").state_dict(), home / "model.pt")
    return run_in_parts(parser, "finding the slide")


def _write_features(path: Path, patches: int, columns: int) -> None:
    """A blob of tissue at 20×, float16, with a thumbnail."""
    rng = np.random.default_rng(SEED)
    coords = np.rint(tissue(patches).T.numpy() * TILE).astype(np.int64)
    width, height = (int(side) for side in coords.max(axis=0) + TILE)
    pitch = Level0Pixels(TILE)
    slide = PatchFeatures(
        features=rng.normal(size=(patches, columns)).astype(np.float16),
        coords=Level0Coords(coords),
        pitch=pitch,
        tile=pitch,
        mpp=MicronsPerPixel(MPP),
        encoder="noise",
        slide_id=path.stem,
        slide_size=(width, height),
        thumbnail=rng.integers(200, 255, (height // 64 + 1, width // 64 + 1, 3)).astype(np.uint8),
        thumbnail_downsample=64.0,
    )
    write_features(path, slide)


def _images(regions: Sequence[Any]) -> Tensor:
    tiles = torch.from_numpy(np.stack([np.asarray(region.convert("RGB")) for region in regions]))
    return tiles.permute(0, 3, 1, 2).float().div(255)


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _write_slides(folder: Path, slides: int, side: int) -> None:
    """The middle of a piece of tissue again and again, in a pyramid by steps of 4."""
    folder.mkdir(parents=True)
    for number in range(slides):
        painted = Image.fromarray(paint_slide(plan_slide(SEED, number, positive=True), SEED))
        left, top, right, bottom = (round(length * at) for at in (1 / 4, 3 / 4) for length in painted.size)
        middle = np.asarray(painted.crop((left, top, right, bottom)))
        repeats = [side * TILE // length + 1 for length in middle.shape[:2]]
        whole = Image.fromarray(np.tile(middle, (*repeats, 1))).crop((0, 0, side * TILE, side * TILE))
        with tifffile.TiffWriter(folder / f"slide_{number}.tif") as tiff:
            for step in (1, 4, 16):
                tiff.write(
                    np.asarray(whole.reduce(step)),
                    tile=(TILE, TILE),
                    photometric="rgb",
                    compression="deflate",
                    subfiletype=int(step > 1),
                    resolution=(1e4 / MPP / step,) * 2,
                    resolutionunit="CENTIMETER",
                )
