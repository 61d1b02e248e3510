# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Feature files of a cohort: checked before a run, then read slide by slide or bag by bag, whole or in blocks."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader
from torch import Tensor
from tqdm import tqdm

from scripts.core.bags import paths_of
from scripts.core.cli import PROGRESS_AFTER_S
from scripts.core.errors import InputError
from scripts.core.units import MicronsPerPixel
from scripts.engine.provenance import Origin
from scripts.wsi.features.base import (
    ENOUGH_TO_TELL,
    LARGEST_FEATURE,
    FeatureFile,
    FeatureHeader,
    identical,
    require_possible,
)
from scripts.wsi.features.files import FEATURE_SUFFIXES, files_of, open_features
from scripts.wsi.features.zarr_store import is_zarr

BLOCK_NUMBERS = 2**21  # of the features of a file, at once: 8 MiB
LONGEST_STAMP = 1000  # characters; a store may be of many files

logger = logging.getLogger(__name__)


def checked_bags(
    bags: Sequence[Mapping[str, Any]],
    encoder: str | None = None,
    trained_with: Origin | None = None,
    in_features: int | None = None,
    slide_mpp: float | None = None,
    require_all: bool = False,
) -> list[dict[str, Any]]:
    """Return the bags, having logged in one line what their features are and refused what the network cannot take.

    Each gains `encoder` ("" = not stated) and `patch_um` (micrometres from patch to patch, 0 = not known), the same for
    all; `patches`, how many it has; and `stamp`, which changes with its files, so that nothing kept of others is taken
    for it.

    Args:
        bags: entries of a datalist, or of a folder.
        encoder: what the user says it is, whatever the files state.
        trained_with: what is known of the features that the network was trained on.
        in_features: features of a patch that the network takes.
        slide_mpp: micrometres per level-0 pixel of slides where nothing states it.
        require_all: a slide that cannot be read, or has no patch, is reported now and not where it is read.
    """
    headers: dict[str, FeatureHeader] = {}
    unusable: list[str] = []
    alike = 0
    for bag in tqdm(bags, desc="headers", unit="slide", delay=PROGRESS_AFTER_S):
        patches, failed, paths = 0, [], paths_of(bag["image"])
        for path in paths:
            try:
                with open_features(path) as file:
                    headers[path] = file.header
                    same = require_all and identical(file)
                    if same and file.header.patches >= ENOUGH_TO_TELL:
                        failed.append(f"the features of all patches of {path} are the same; extract them again")
                    elif same:
                        alike += 1
                patches += headers[path].patches
            except InputError as error:
                failed.append(str(error))
        unusable += failed or [no_patches(paths[0])] * (patches == 0)
    if require_all and unusable:
        more = f" ({len(unusable) - 1} more cannot be used: python -m scripts doctor wsi names them)"
        raise InputError(unusable[0] + more * (len(unusable) > 1))
    if alike:
        logger.warning(f"small slides whose patches all have the same features: {alike}; doctor wsi names them")
    name = encoder or _one_encoder(headers)
    patch_um = _patch_um(headers.values(), slide_mpp)
    if headers:
        logger.info(_summary_line(headers.values(), name))
        _refuse_other_length(headers, in_features)
        if trained_with is not None:
            trained_with.compare(name, patch_um)
    found = []
    for bag in bags:
        states = [os.stat(file) for path in paths_of(bag["image"]) for file in files_of(path)]
        stamp = " ".join(f"{state.st_size}.{state.st_mtime_ns}" for state in states)
        stamp = stamp if len(stamp) <= LONGEST_STAMP else hashlib.sha256(stamp.encode()).hexdigest()
        patches = sum(headers[path].patches for path in paths_of(bag["image"]) if path in headers)
        found.append({**bag, "encoder": name, "patch_um": patch_um, "patches": patches, "stamp": stamp})
    return found


def _refuse_other_length(headers: Mapping[str, FeatureHeader], in_features: int | None) -> None:
    for path, header in headers.items():
        if in_features is not None and header.patches and header.dimension != in_features:
            raise InputError(
                f"{path} has {header.dimension} features for each patch, the network takes {in_features}: "
                f"give the features it was trained on, or to train on these --in_features {header.dimension}"
            )


def _patch_um(headers: Iterable[FeatureHeader], slide_mpp: float | None) -> float:
    """Return the micrometres from one patch to the next, in the middle slide of those that state them."""
    of_user = None if slide_mpp is None else MicronsPerPixel(slide_mpp)
    filled = (replace(header, mpp=header.mpp or of_user) for header in headers if header.patches)
    known = [pitch for header in filled if (pitch := header.pitch_um) is not None]
    return median(known) if known else 0.0


def _one_encoder(headers: Mapping[str, FeatureHeader]) -> str:
    """Return its name, empty where no file states one; a network cannot tell encoders of one dimension apart."""
    known = [(path, header.encoder) for path, header in headers.items() if header.encoder]
    for path, encoder in known:
        if encoder.lower() != known[0][1].lower():
            raise InputError(
                f"the features in {path} are of the encoder {encoder}, those in {known[0][0]} of {known[0][1]}: "
                "give those of one encoder"
            )
    return known[0][1] if known else ""


def _summary_line(headers: Collection[FeatureHeader], encoder: str) -> str:
    """Return a line without a path, as a folder may be named after a patient."""
    formats = ", ".join(f"{count} {name}" for name, count in Counter(header.format for header in headers).most_common())
    pitches = Counter(f"{each.pitch:.6g} {each.unit} ({each.pitch_from})" for each in headers if each.patches)
    common = " or ".join(pitch for pitch, _ in pitches.most_common(2))
    more = f" and {len(pitches) - 2} more" if len(pitches) > 2 else ""
    empty = sum(header.patches == 0 for header in headers)
    parts = [
        f"{len(headers)} slide{'s' * (len(headers) > 1)}: {formats}",
        f"encoder {encoder or 'not stated'}",
        f"pitch {common}{more}" if pitches else "",
        f"{empty} without patches" if empty else "",
    ]
    return "; ".join(filter(None, parts))


def no_patches(source: str) -> str:
    """Return the message about a slide without tissue."""
    return f"{source} holds no patches: no tissue was found"


class FeatureReader(ImageReader):
    """A reader of one feature file, or those of a bag, for ``LoadImaged(keys="image", reader=FeatureReader())``.

    The image is [N, D] float32, slide after slide, made once and filled block by block.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        paths = map(Path, paths_of(filename))
        return all(path.suffix.lower() in FEATURE_SUFFIXES or is_zarr(path) for path in paths)

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> list[str]:
        # the files are opened in get_data: LoadImage buries what is raised here under a list of readers
        return paths_of(data)

    def get_data(self, img: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
        with opened_bag(img) as files:
            patches = sum(file.header.patches for file in files)
            dimension = max((file.header.dimension for file in files if file.header.patches), default=0)
            try:
                image = np.empty((patches, dimension), dtype=np.float32)
            except (MemoryError, ValueError) as error:
                what = f"{patches} x {dimension} features, more than the memory"
                raise InputError(f"{files[0].path} holds {what}: read it in blocks (configs/streaming.json)") from error
            at = 0
            for block in _finite_blocks(files, max(1, BLOCK_NUMBERS // max(1, dimension))):
                image[at : at + len(block)] = block
                at += len(block)
            slides = [file.slide.as_json() for file in files]
            return image, {"slides": slides, "coords": [file.coords for file in files]}


@contextmanager
def opened_blocks(path: str | Sequence[str], size: int) -> Iterator[Callable[[], Iterator[Tensor]]]:
    """Open a file, or a bag (a list, or a text of a path per line); a call yields its features, [1, D, size], again."""
    with opened_bag(path.split("\n") if isinstance(path, str) else paths_of(path)) as files:
        yield lambda: (torch.from_numpy(block).float().t()[None] for block in _finite_blocks(files, size))


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


def _finite_blocks(files: Sequence[FeatureFile], size: int) -> Iterator[np.ndarray]:
    """Yield the features (n, D) of all patches in their order, all finite."""
    for file in files:
        for start in range(0, file.header.patches, size):
            block = file.read(start, start + size)
            if not torch.from_numpy(block).norm(dtype=torch.float) < LARGEST_FEATURE:  # fast
                require_possible(file.path, block)
            yield block
