# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Small slides of known content, and what encoders make of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor

from scripts.core.units import Level0Coords
from scripts.wsi.encode import FeatureExtractor
from scripts.wsi.features.files import open_features, read_own_header
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


def read_features(path: Path) -> PatchFeatures:
    """All of one file of this project's own format."""
    header = read_own_header(path)
    with open_features(path) as file, h5py.File(path) as raw:
        has_picture = "thumbnail" in raw
        return PatchFeatures(
            features=file.read(0, header.patches),
            coords=Level0Coords(file.coords),
            pitch=header.pitch,
            tile=header.tile,
            mpp=header.mpp,
            encoder=header.encoder,
            slide_id=header.slide_id,
            slide_size=header.slide_size or (0, 0),
            thumbnail=raw["thumbnail"][()] if has_picture else None,
            thumbnail_downsample=float(raw.attrs["thumbnail_downsample"]) if has_picture else None,
            origin=header.origin,
        )


def extract(tmp_path: Path, encoder: torch.nn.Module | None = None, **settings: Any) -> dict[str, PatchFeatures]:
    encoder = MeanColour() if encoder is None else encoder
    wanted: dict[str, Any] = {"slides": tmp_path / "slides", "output_dir": tmp_path / "features"}
    wanted |= {"encoder": encoder, "encoder_name": "mean colour", "tile_size": 64, "batch_size": 5, "num_workers": 2}
    wanted |= settings
    FeatureExtractor(**wanted).run()
    return {path.stem: read_features(path) for path in sorted(Path(wanted["output_dir"]).glob("*.h5"))}


def grid(columns: int, rows: int, pitch: float) -> list[list[int]]:
    return [[round(column * pitch), round(row * pitch)] for row in range(rows) for column in range(columns)]
