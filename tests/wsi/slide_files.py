# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Small slides of known content, and what encoders make of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor

from scripts.wsi.encode import FeatureExtractor
from scripts.wsi.features.files import read_features
from scripts.wsi.features.smooth_mil import PatchFeatures

GLASS, TISSUE = (241, 240, 243), (205, 130, 180)


class MeanColour(torch.nn.Module):
    """Says what it saw: the mean colour of each tile and the colours of its upper corners, left and right."""

    def forward(self, tiles: Tensor) -> Tensor:
        return torch.cat([tiles.mean(dim=(2, 3)), tiles[:, :, 0, 0], tiles[:, :, 0, -1]], dim=1)


def glass(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GLASS, np.uint8)


def tissue(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Stained everywhere, no two places alike."""
    noise = np.random.default_rng(seed).integers(-25, 26, (height, width, 1))
    ramp = np.linspace(-20, 20, width)[None, :, None] + np.linspace(-20, 20, height)[:, None, None]
    return np.clip(np.array(TISSUE) + noise + ramp, 0, 255).astype(np.uint8)


def write_slide(path: Path, image: np.ndarray, mpp: float | None, downsamples: Sequence[int] = (1, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind: dict[str, Any] = {"photometric": "rgb", "compression": "deflate", "tile": (128, 128)}
    if mpp is not None:
        kind |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    height, width, _ = image.shape
    with tifffile.TiffWriter(path) as writer:
        for downsample in downsamples:
            level = np.asarray(Image.fromarray(image).reduce(downsample)) if downsample > 1 else image
            writer.write(level[: height // downsample, : width // downsample], subfiletype=int(downsample > 1), **kind)
    return path


def extract(tmp_path: Path, encoder: torch.nn.Module | None = None, **settings: Any) -> dict[str, PatchFeatures]:
    encoder = MeanColour() if encoder is None else encoder
    wanted: dict[str, Any] = {"slides": tmp_path / "slides", "output_dir": tmp_path / "features"}
    wanted |= {"encoder": encoder, "encoder_name": "mean colour", "tile_size": 64, "batch_size": 5, "num_workers": 2}
    wanted |= settings
    FeatureExtractor(**wanted).run()
    return {path.stem: read_features(path) for path in sorted(Path(wanted["output_dir"]).glob("*.h5"))}


def grid(columns: int, rows: int, pitch: float) -> list[list[int]]:
    return [[round(column * pitch), round(row * pitch)] for row in range(rows) for column in range(columns)]
