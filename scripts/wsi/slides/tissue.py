# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Where the tissue of a slide lies, and which tiles show it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import openslide
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_data_type, convert_to_dst_type
from torch.nn.functional import avg_pool2d

from scripts.core.errors import InputError
from scripts.core.units import Level0Coords
from scripts.wsi.slides.slide import TilePlan, read_overview

MASK_PIXELS = 8  # pixels of the tissue mask along a tile: 16 micrometres each for 256 pixels at 0.5

TissueMask = Callable[[np.ndarray], NdarrayOrTensor]  # RGB image [3, h, w] uint8 → mask [1, h, w], not 0 is tissue


class ChromaMask(Transform):
    """Find tissue by its colour: RGB image [3, h, w] → mask [1, h, w] of 0 and 1.

    Stains have colour; glass, shadow, dust and black borders are grey. MONAI's ForegroundMask takes the same place in
    the config: a threshold on brightness takes shadows and the black around a scan for tissue, Otsu's finds tissue on
    empty glass, and for that and for HSV it needs scikit-image.

    Args:
        least_chroma: difference of the largest and the smallest of red, green and blue (0 to 255) above which a
            pixel is tissue.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 as MONAI declares it

    def __init__(self, least_chroma: int = 15) -> None:
        self.least_chroma = least_chroma

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        pixels, *_ = convert_data_type(image, np.ndarray)
        mask: NdarrayOrTensor
        mask, *_ = convert_to_dst_type(np.ptp(pixels, axis=0, keepdims=True) > self.least_chroma, dst=image)
        return mask


def tissue_mask(image: np.ndarray, tissue: TissueMask) -> np.ndarray:
    """Return (h, w) bool for an (h, w, 3) uint8 image."""
    mask = np.asarray(tissue(np.ascontiguousarray(image.transpose(2, 0, 1))))
    if mask.shape != (1, *image.shape[:2]):
        given = f"the tissue mask of an image of {image.shape[0]} × {image.shape[1]} pixels is {mask.shape}"
        raise InputError(f"{given}: `tissue` must give [1, h, w] for [3, h, w]")
    found: np.ndarray = mask[0] > 0
    return found


def tissue_tiles(slide: openslide.OpenSlide, plan: TilePlan, tissue: TissueMask, threshold: float) -> Level0Coords:
    """Return the tiles, row by row, that lie wholly in the slide and are tissue for at least the threshold."""
    if min(slide.dimensions) < plan.tile:
        return Level0Coords(np.zeros((0, 2), np.int64))
    downsample = plan.tile / MASK_PIXELS
    mask = torch.from_numpy(tissue_mask(read_overview(slide, downsample), tissue)).float()
    fractions = avg_pool2d(mask[None], MASK_PIXELS, stride=1)[0].numpy()  # of the tile whose first pixel is here
    rounding = 1e-6  # a tile that fits to the pixel must not be lost to floating point
    x, y = (
        np.arange(int((length - plan.tile) / plan.pitch + rounding) + 1) * plan.pitch for length in slide.dimensions
    )  # where the tiles of a row and of a column begin, in level-0 pixels
    fraction = fractions[np.ix_(np.rint(y / downsample).astype(int), np.rint(x / downsample).astype(int))]
    row, column = np.nonzero(fraction >= threshold)
    return Level0Coords(np.rint(np.stack([x[column], y[row]], axis=1)).astype(np.int64))


def mask_settings(tissue: TissueMask) -> dict[str, Any]:
    """Return the name of a mask and its settings in plain values: two masks with the same find the same tissue."""
    return {"name": type(tissue).__name__, **{name: _plain_setting(value) for name, value in vars(tissue).items()}}


def _plain_setting(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain_setting(inner) for key, inner in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__name__", type(value).__name__)
