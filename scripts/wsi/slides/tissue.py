# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Where the tissue of a slide lies, and which tiles show it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import openslide
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_data_type, convert_to_dst_type
from torch.nn.functional import avg_pool2d, pad

from scripts.core.errors import InputError
from scripts.core.units import Level0Coords
from scripts.wsi.slides.artefacts import Artefact
from scripts.wsi.slides.slide import TilePlan, read_overview

MASK_PIXELS = 8  # pixels of the tissue mask along a tile: 16 micrometres each for 256 pixels at 0.5

NO_TISSUE, LITTLE_TISSUE = "no tissue", "little tissue"  # why a tile is left out, besides the artefacts

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


@dataclass(frozen=True)
class TissueMap:
    """What was found on the overview of a slide, and the tiles of its grid."""

    overview: np.ndarray  # (h, w, 3) uint8
    downsample: float  # level-0 pixels along one of its pixels
    tissue: np.ndarray  # (h, w) bool, without what is left out
    left_out: Mapping[str, np.ndarray]  # artefact → (h, w) bool, no pixel of two
    grid: Level0Coords  # the corner of each tile, row by row
    reasons: np.ndarray  # (tiles,) why it is left out, "" for one that is encoded

    @property
    def tiles(self) -> Level0Coords:
        """The corners of the tiles that are encoded."""
        return Level0Coords(self.grid[self.reasons == ""])

    @cached_property
    def shares(self) -> dict[str, float]:
        """The shares of the slide that are tissue and each artefact."""
        masks = {"tissue": self.tissue, **self.left_out}
        return {name: float(mask.mean()) for name, mask in masks.items()}

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many tiles are left out for each reason."""
        reasons = (NO_TISSUE, LITTLE_TISSUE, *self.left_out)
        return {reason: int((self.reasons == reason).sum()) for reason in reasons}


@dataclass(frozen=True)
class TileFinder:
    """Finds the tiles of a slide that are encoded.

    A tile is encoded if tissue is at least the `threshold` of it and no less of it than any artefact; tissue below an
    artefact does not count. The grid begins at the upper left corner of the slide, and its last tiles overhang the
    right and the lower edge where `overhang` says so: outside is no tissue.
    """

    tissue: TissueMask
    threshold: float
    overhang: bool = True
    leave_out: Mapping[str, Artefact | None] = field(default_factory=dict)  # by name; None is passed over

    def find(self, slide: openslide.OpenSlide, plan: TilePlan) -> TissueMap:
        """Return the tissue of a slide and its tiles."""
        downsample = plan.tile / MASK_PIXELS
        overview = read_overview(slide, downsample)
        tissue = tissue_mask(overview, self.tissue)
        left_out: dict[str, np.ndarray] = {}
        for name, rule in self.leave_out.items():
            if rule is not None:
                found = _mask(rule(_channels_first(overview), tissue[None]), overview, f"leave_out#{name}")
                left_out[name] = found & ~np.any(list(left_out.values()), axis=0)
                tissue = tissue & ~found
        x, y = (_begins(length, plan, self.overhang) for length in slide.dimensions)
        rows, columns = (np.rint(begins / downsample).astype(int) for begins in (y, x))
        shares = np.stack([_shares(mask)[np.ix_(rows, columns)] for mask in (tissue, *left_out.values())])
        corners = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1).reshape(-1, 2)
        return TissueMap(
            overview,
            downsample,
            tissue,
            left_out,
            Level0Coords(np.rint(corners).astype(np.int64)),
            self._reasons(shares.reshape(len(shares), -1), list(left_out)),
        )

    def _reasons(self, shares: np.ndarray, names: list[str]) -> np.ndarray:
        """Return (tiles,) why each is left out; shares: (1 + names, tiles) of tissue and of each artefact."""
        tissue, covered = shares[0], shares[1:].max(axis=0, initial=0)
        stained = shares.sum(axis=0)
        worst = np.array([*names, ""])[shares[1:].argmax(axis=0)] if names else ""
        unfit = np.where(stained < self.threshold, np.where(stained == 0, NO_TISSUE, LITTLE_TISSUE), worst)
        return np.where((tissue >= self.threshold) & (tissue >= covered), "", unfit)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which tiles are encoded, in plain values."""
        rules = {name: mask_settings(rule) for name, rule in self.leave_out.items() if rule is not None}
        return {
            "tissue": mask_settings(self.tissue),
            "tissue_threshold": self.threshold,
            "overhang": self.overhang,
            "leave_out": rules,
        }


def tissue_mask(image: np.ndarray, tissue: TissueMask) -> np.ndarray:
    """Return (h, w) bool for an (h, w, 3) uint8 image."""
    return _mask(tissue(_channels_first(image)), image, "tissue")


def _channels_first(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _mask(given: Any, image: np.ndarray, key: str) -> np.ndarray:
    """Return what a mask or rule of the config gave as (h, w) bool."""
    mask = np.asarray(given)
    if mask.shape != (1, *image.shape[:2]):
        found = f"the {key} mask of an image of {image.shape[0]} × {image.shape[1]} pixels is {mask.shape}"
        raise InputError(f"{found}: `{key}` must give [1, h, w] for [3, h, w]")
    return np.asarray(mask[0] > 0)


def _begins(length: int, plan: TilePlan, overhang: bool) -> np.ndarray:
    """Return where the tiles of a row or column begin, in level-0 pixels: as many as cover it, or as lie within it."""
    if overhang:  # for less than a pixel none is added, which would begin outside where it is rounded
        count = math.ceil(max(length - 1 - plan.tile, 0) / plan.pitch) + 1
    else:
        rounding = 1e-6  # a tile that fits to the pixel must not be lost to floating point
        count = math.floor((length - plan.tile) / plan.pitch + rounding) + 1
    return np.arange(max(count, 0)) * plan.pitch


def _shares(mask: np.ndarray) -> np.ndarray:
    """Return the share of the mask in the tile that begins at each pixel; outside of the slide it is empty."""
    padded = pad(torch.from_numpy(mask).float()[None], (0, MASK_PIXELS, 0, MASK_PIXELS))
    return np.asarray(avg_pool2d(padded, MASK_PIXELS, stride=1)[0])


def mask_settings(mask: TissueMask | Artefact) -> dict[str, Any]:
    """Return the name of a mask and its settings in plain values: two masks with the same find the same."""
    if isinstance(mask, partial):
        return {
            **mask_settings(mask.func),
            "args": _plain_setting(mask.args),
            "keywords": _plain_setting(mask.keywords),
        }
    name = getattr(mask, "__qualname__", type(mask).__name__)  # of a function, else of an object's class
    return {"name": name, **{key: _plain_setting(value) for key, value in getattr(mask, "__dict__", {}).items()}}


def _plain_setting(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain_setting(inner) for key, inner in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain_setting(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__name__", type(value).__name__)
