# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Feature files of one slide or of a bag of slides: read whole, or in blocks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader
from monai.utils import ensure_tuple
from torch import Tensor

from scripts.core.errors import InputError
from scripts.core.files import require_finite
from scripts.wsi.features.base import FeatureFile, FeatureHeader
from scripts.wsi.features.files import FEATURE_SUFFIXES, open_features
from scripts.wsi.slides.folder import SlideFolder

BLOCK_NUMBERS = 2**21  # of the features of a file, at once: 8 MiB


@dataclass(frozen=True)
class SlidePatches:
    """One slide of a bag: where its patches lie, and what is known of it."""

    source: str  # path of its features
    header: FeatureHeader
    coords: np.ndarray  # (N, 2)
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**self.header.as_json(), "source": self.source}

    @staticmethod
    def of_file(file: FeatureFile) -> SlidePatches:
        return SlidePatches(str(file.path), file.header, file.coords)

    @staticmethod
    def of_json(stored: Mapping[str, Any], coords: np.ndarray) -> SlidePatches:
        fields = {name: value for name, value in stored.items() if name != "source"}
        return SlidePatches(stored["source"], FeatureHeader.from_json(fields), coords)

    def completed(self, slides: SlideFolder, slide_mpp: float | None) -> SlidePatches:
        """With what its features leave out."""
        return replace(self, **slides.completed(self.header, self.coords, self.source, slide_mpp)._asdict())


def paths_of(image: Any) -> list[str]:
    """Return the paths of a bag that names one or several."""
    return [str(path) for path in ensure_tuple(image)]


def no_patches(source: str) -> str:
    """Return what to say of a slide without tissue."""
    return f"{source} holds no patches: no tissue was found"


class FeatureReader(ImageReader):
    """A reader of one feature file, or those of a bag, for ``LoadImaged(keys="image", reader=FeatureReader())``.

    The image is [N, D] float32, slide after slide, made once and filled block by block.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        return all(Path(name).suffix.lower() in FEATURE_SUFFIXES for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> list[str]:
        # the files are opened in get_data: LoadImage buries what is raised here under a list of readers
        return paths_of(data)

    def get_data(self, img: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
        with opened_bag(img) as files:
            image = _unfilled(files)
            at = 0
            for block in _finite_blocks(files, max(1, BLOCK_NUMBERS // max(1, image.shape[1]))):
                image[at : at + len(block)] = block
                at += len(block)
        slides = [SlidePatches.of_file(file) for file in files]
        return image, {"slides": [slide.as_json() for slide in slides], "coords": [slide.coords for slide in slides]}


def read_blocks(path: str | Sequence[str], size: int) -> Iterator[Tensor]:
    """Give the patch features of one file, or of those of a bag (a list, or a text of a path per line), block by block.

    [1, D, n] each, n at most `size`.
    """
    with opened_bag(path.split("\n") if isinstance(path, str) else paths_of(path)) as files:
        for block in _finite_blocks(files, size):
            yield torch.from_numpy(block).float().t()[None]


@contextmanager
def opened_bag(paths: Sequence[str]) -> Iterator[list[FeatureFile]]:
    """Open files that fit together as one bag."""
    with ExitStack() as open_files:
        files = [open_files.enter_context(open_features(path)) for path in paths]
        filled = [file for file in files if file.header.patches]
        for file in filled:
            if file.header.dimension != filled[0].header.dimension:
                raise InputError(
                    f"{file.path} has {file.header.dimension} features for each patch, {filled[0].path} has "
                    f"{filled[0].header.dimension}: the slides of a bag need features of one encoder"
                )
        yield files


def _unfilled(files: Sequence[FeatureFile]) -> np.ndarray:
    patches = sum(file.header.patches for file in files)
    dimension = max((file.header.dimension for file in files if file.header.patches), default=0)
    try:
        return np.empty((patches, dimension), dtype=np.float32)
    except (MemoryError, ValueError) as error:
        raise InputError(
            f"{files[0].path} holds {patches} x {dimension} features, more than the memory: "
            "read it in blocks (configs/streaming.json)"
        ) from error


def _finite_blocks(files: Sequence[FeatureFile], size: int) -> Iterator[np.ndarray]:
    """The features (n, D) of all patches in their order, all finite."""
    for file in files:
        for start in range(0, file.header.patches, size):
            block = file.read(start, start + size)
            if not torch.from_numpy(block).sum(dtype=torch.float).isfinite():  # fast, and finite for whatever is
                require_finite(file.path, block)
            yield block
