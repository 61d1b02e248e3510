# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Results of slides that were never scanned, and of one that was, in conftest.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scripts.core.record import BagResult, PatchCoordinates
from scripts.core.units import Level0Pixels
from scripts.wsi.features.base import FeatureHeader

TILE = 512
SCAN_SIZE = (1280, 1024)  # width, height of the slide that was
SCAN_MPP = 0.5


def header(
    patches: int, slide_id: str = "slide 7", pitch: float = TILE, tile: float | None = None, **given: Any
) -> FeatureHeader:
    return FeatureHeader(
        format="smooth-mil",
        patches=patches,
        dimension=8,
        slide_id=slide_id,
        encoder="mean colour",
        pitch=Level0Pixels(pitch),
        pitch_from="pitch_level0",
        tile=Level0Pixels(pitch if tile is None else tile),
        **{"unit": "level-0 pixels", "mpp": 0.25, "slide_size": None, **given},
    )


def bag(
    coords: np.ndarray | Sequence[np.ndarray],
    attention: np.ndarray | Sequence[float],
    *headers: FeatureHeader,
    source: str | None = None,
    **given: Any,
) -> BagResult:
    """A bag of one slide, or of several; attention is made to sum to 1."""
    places = [coords] if isinstance(coords, np.ndarray) else coords
    headers = headers or tuple(header(len(own), f"slide {number}") for number, own in enumerate(places))
    about = [{**each.as_json(), "source": source or f"features/{each.slide_id}.h5"} for each in headers]
    shares = np.asarray(attention, dtype=np.float64)
    return BagResult(
        **{
            "bag_id": "bag 7",
            "source": about[0]["source"],
            "probability": 0.9,
            "threshold": 0.5,
            "scores": np.log(np.maximum(shares, 1e-6)).astype(np.float32),
            "attention": (shares / max(shares.sum(), 1e-12)).astype(np.float32),
            "instances": PatchCoordinates(
                np.concatenate(places), np.repeat(np.arange(len(places)), [len(own) for own in places])
            ),
            "about": {"slides": about, "warnings": []},
            **given,
        }
    )


def grid(columns: int, rows: int, pitch: float = TILE) -> np.ndarray:
    """(columns × rows, 2) level-0 corners, row by row, whole pixels as features have them."""
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    return np.rint(np.stack([x.ravel(), y.ravel()], axis=1) * pitch).astype(np.int64)


def own_form(path: Path, thumbnail: np.ndarray | None, downsample: float = 8.0) -> str:
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((1, 8), np.float32)
        if thumbnail is not None:
            file["thumbnail"] = thumbnail
        file.attrs["thumbnail_downsample"] = downsample if thumbnail is not None else np.nan
    return str(path)
