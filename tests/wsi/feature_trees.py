# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of small feature files as this project, CLAM, TRIDENT and torchmil leave them."""

import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from tests.wsi.foreign_features import write_clam

PITCH = 512


def grid(patches: int, pitch: float = PITCH, columns: int = 4) -> np.ndarray:
    """(N, 2) corners, row by row."""
    row, column = np.divmod(np.arange(patches), columns)
    return np.stack([column, row], axis=1) * pitch


def random_features(name: str, patches: int = 12, dimension: int = 4) -> np.ndarray:
    """Different for every name."""
    seed = zlib.crc32(name.encode())
    return np.random.default_rng(seed).normal(size=(patches, dimension)).astype(np.float32)


def own(path: Path, patches: int = 12, dimension: int = 4, **changes: Any) -> Path:
    """12 patches, 3 rows of 4: the mean degree is (4·3 + 6·5 + 2·8) / 12 = 58 / 12."""
    usual: dict[str, Any] = {
        "features": random_features(path.stem, patches, dimension),
        "coords": Level0Coords(grid(patches)),
        "pitch": Level0Pixels(PITCH),
        "tile": Level0Pixels(PITCH),
        "mpp": MicronsPerPixel(0.25),
        "encoder": "tiny",
        "slide_id": path.stem,
        "slide_size": (4096, 4096),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_features(path, PatchFeatures(**{**usual, **changes}))
    return path


def clam(folder: Path, name: str, patches: int = 12) -> Path:
    """Its two files of a slide, without an attribute."""
    return write_clam(folder, name, grid(patches), patch_size=None, features=random_features(name, patches))


def trident(folder: Path, name: str, encoder: str = "uni_v1", patches: int = 12, overlap: int = 0, target: int = 20,
            known: bool = True) -> Path:  # fmt: skip
    """Of a slide at 40x, patches of 256 pixels at 20x, so of 512 at level 0; the 40x is stated, or not."""
    times = 40 // target
    root = folder / f"{target}x_256px_{overlap}px_overlap"
    path = root / f"features_{encoder}" / f"{name}.h5"
    for place, data in ((path, True), (root / "patches" / f"{name}_patches.h5", False)):
        place.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(place, "w") as file:
            if data:
                file["features"] = random_features(f"{name} {encoder}", patches)
            file["coords"] = grid(patches, times * (256 - overlap))
            file["coords"].attrs.update(
                patch_size=256,
                patch_size_level0=256 * times,
                overlap=overlap,
                level0_magnification=40 if known else "None",
                target_magnification=target,
            )
    return path


def torchmil(root: Path, name: str, label: int, positive: int = 0, features: str = "features_UNI") -> Path:
    """Of its published cohorts `features` is features/features_UNI."""
    arrays = {
        features: random_features(name),
        "coords": grid(12),
        "labels": np.array(label),
        "patch_labels": (np.arange(12) < positive).astype(int),
    }
    for place, array in arrays.items():
        path = root / "patches_512" / place / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    return root / "patches_512" / features / f"{name}.npy"


def write(path: Path, *lines: str) -> Path:
    """A csv, or any text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path
