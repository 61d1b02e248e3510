# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Patch features of a slide: the project's own file, its reader, and the bag a network takes.

One HDF5 file per slide:

- ``features`` (N, D) float32 or float16; N is 0 for a slide without tissue
- ``coords`` (N, 2) integers: top-left x, y of each patch in level-0 pixels
- ``thumbnail`` (h, w, 3) uint8, optional
- attributes of the root: ``format`` = "smooth-mil-features/1", ``slide_id``, ``encoder`` (its name),
  ``pitch_level0`` (level-0 pixels from one patch to the next), ``tile_level0`` (level-0 pixels a patch spans),
  ``mpp`` (micrometres per level-0 pixel, NaN = unknown), ``slide_width`` and ``slide_height`` (level-0 pixels),
  ``thumbnail_downsample`` (level-0 pixels per thumbnail pixel, NaN = no thumbnail)
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from mmap import ACCESS_COPY, MADV_DONTNEED, PAGESIZE, mmap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from torch import Tensor

from scripts.data.annotations import read_polygons, tile_labels
from scripts.data.feature_files import feature_files, opened_features, require_finite
from scripts.errors import InputError
from scripts.files import whole_file
from scripts.units import Level0Coords, Level0Pixels, MicronsPerPixel, PitchCoords

FORMAT = "smooth-mil-features/1"
ATTRIBUTES = ("slide_id", "encoder", "pitch_level0", "tile_level0", "mpp", "slide_width", "slide_height")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureHeader:
    """What a feature file says about its patches, read without the patches."""

    patches: int
    encoder: str
    slide_id: str
    pitch: Level0Pixels
    tile: Level0Pixels
    mpp: MicronsPerPixel | None
    slide_size: tuple[int, int]  # width, height in level-0 pixels


@dataclass(frozen=True)
class PatchFeatures:
    """The encoded patches of one slide."""

    features: np.ndarray  # (N, D)
    coords: Level0Coords
    pitch: Level0Pixels
    tile: Level0Pixels
    mpp: MicronsPerPixel | None
    encoder: str
    slide_id: str
    slide_size: tuple[int, int]  # width, height in level-0 pixels
    thumbnail: np.ndarray | None = None  # (h, w, 3) uint8
    thumbnail_downsample: float | None = None


def write_features(path: str | Path, slide: PatchFeatures) -> None:
    """Write the file whole or not at all: an interrupted run leaves nothing that looks finished."""
    _check_arrays(path, slide.features, slide.coords)
    require_finite(path, slide.features)
    with whole_file(Path(path)) as beside, h5py.File(beside, "w") as file:
        file["features"] = slide.features
        file["coords"] = slide.coords
        if slide.thumbnail is not None:
            file.create_dataset("thumbnail", data=slide.thumbnail, compression="gzip")
        width, height = slide.slide_size
        file.attrs.update(
            format=FORMAT,
            slide_id=slide.slide_id,
            encoder=slide.encoder,
            pitch_level0=slide.pitch,
            tile_level0=slide.tile,
            mpp=_or_nan(slide.mpp),
            slide_width=width,
            slide_height=height,
            thumbnail_downsample=_or_nan(slide.thumbnail_downsample),
        )


def read_header(path: str | Path) -> FeatureHeader:
    """The units and the origin of the patches; fails as ``read_features`` does, and is fast."""
    with _opened(path) as file:
        return _header(path, file)


def read_features(path: str | Path) -> PatchFeatures:
    """Read one file of the project's own form, or say in one line why it is not one."""
    with _opened(path) as file:
        header = _header(path, file)
        features, coords = file["features"][()], file["coords"][()]
        thumbnail = file["thumbnail"][()] if "thumbnail" in file else None
        downsample = _or_none(file.attrs.get("thumbnail_downsample", math.nan))
    _check_arrays(path, features, coords)
    require_finite(path, features)
    return PatchFeatures(
        features=features,
        coords=Level0Coords(coords),
        pitch=header.pitch,
        tile=header.tile,
        mpp=header.mpp,
        encoder=header.encoder,
        slide_id=header.slide_id,
        slide_size=header.slide_size,
        thumbnail=thumbnail,
        thumbnail_downsample=downsample,
    )


def find_features(directory: str | Path) -> list[dict[str, str]]:
    """The bags of a directory in order of their names; a slide without patches has nothing to score and is left out."""
    bags = []
    for path in feature_files(directory):
        if read_header(path).patches == 0:
            logger.warning("%s holds no patches (a slide without tissue) and is left out", path)
            continue
        bags.append({"image": str(path), "bag_id": path.stem})
    return bags


class FeatureReader(ImageReader):
    """For ``LoadImaged(keys="image", reader=FeatureReader(), image_only=True)``: the features as a [D, N] image."""

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        return all(Path(name).suffix == ".h5" for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Path:
        # the file is opened in get_data: LoadImage buries what is raised here under a list of readers
        return Path(ensure_tuple(data)[0])

    def get_data(self, img: Path) -> tuple[np.ndarray, dict[str, Any]]:
        slide = read_features(img)
        image = np.ascontiguousarray(slide.features.T, dtype=np.float32)
        meta = {
            "coords": slide.coords,
            "pitch": slide.pitch,
            "tile": slide.tile,
            "mpp": _or_nan(slide.mpp),
            "encoder": slide.encoder,
            "slide_id": slide.slide_id,
            "slide_size": slide.slide_size,
        }
        return image, meta


class PatchBagd(MapTransform):
    """A slide loaded by ``FeatureReader`` becomes the bag a network takes, in plain tensors.

    ``image`` [D, N], ``coords`` [2, N] in units of the pitch, ``mask`` [1, N] ones, ``label`` [1] if the item has one,
    ``instance_label`` [1, N] if the item has a list of them or an ``annotation`` (the path of a GeoJSON file),
    ``instances`` (JSON text: id and top-left x, y at level 0 of each patch) and ``source`` (path of the features).
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        for key in self.key_iterator(bag):
            image: MetaTensor = bag[key]
            bag[key] = image.as_tensor().float()
            meta = image.meta
            _describe(
                bag,
                str(meta["filename_or_obj"]),
                Level0Coords(np.asarray(meta["coords"])),
                Level0Pixels(meta["pitch"]),
                Level0Pixels(meta["tile"]),
            )
        return bag


def read_blocks(path: str, size: int) -> Iterator[Tensor]:
    """The patch features of one file, [1, D, n] each, n at most `size`."""
    with _opened(path) as file:
        features = file["features"]
        offset = features.id.get_offset()
        if offset is None:  # in chunks, or compressed: HDF5 must put a block together
            for start in range(0, len(features), size):
                yield _block(path, features[start : start + size])
            return
        with open(path, "rb") as raw:
            mapped = mmap(raw.fileno(), 0, access=ACCESS_COPY)  # closed when the last block is let go
        rows = np.frombuffer(mapped, features.dtype, features.size, offset).reshape(features.shape)
        for start in range(0, len(features), size):
            yield _block(path, rows[start : start + size])
            _forget(mapped, offset, offset + rows[: start + size].nbytes)


def _block(path: str, rows: np.ndarray) -> Tensor:
    block = torch.from_numpy(rows).float()
    if not block.sum().isfinite():  # fast, and finite for whatever is
        require_finite(path, rows)
    return block.t()[None]


def _forget(mapped: mmap, start: int, end: int) -> None:
    """The pages that were read are given back, or the whole file would stand in this process' memory."""
    whole = start // PAGESIZE * PAGESIZE
    mapped.madvise(MADV_DONTNEED, whole, end - whole)


class PatchBlocksd(MapTransform):
    """The same bag as by ``FeatureReader`` and ``PatchBagd``, but ``image`` stays a path, for ``read_blocks``."""

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        bag = dict(data)
        for key in self.key_iterator(bag):
            path = str(bag[key])
            with _opened(path) as file:
                header = _header(path, file)
                coords = file["coords"][()]
                _check_arrays(path, file["features"], coords)
            _describe(bag, path, Level0Coords(coords), header.pitch, header.tile)
        return bag


def one_bag(bags: Sequence[Mapping[Hashable, Any]]) -> dict[Hashable, Any]:
    """A batch of a single bag, whose features stay where they are."""
    if len(bags) != 1:
        raise InputError(f"{len(bags)} bags in a batch of bags that are read in blocks: set the batch size to 1")
    return {key: value[None] if isinstance(value, Tensor) else [value] for key, value in bags[0].items()}


def _describe(
    bag: dict[Hashable, Any], source: str, coords: Level0Coords, pitch: Level0Pixels, tile: Level0Pixels
) -> None:
    """All of a bag but its features."""
    if len(coords) == 0:
        raise InputError(f"{source} holds no patches (a slide without tissue); leave it out of the data list")
    bag["coords"] = torch.from_numpy(in_pitches(coords, pitch).T.astype(np.float32))
    bag["mask"] = torch.ones(1, len(coords))
    if "label" in bag:
        bag["label"] = torch.tensor([float(bag["label"])])
    if "annotation" in bag:
        covered = tile_labels(read_polygons(bag["annotation"]), coords, tile)
        bag["instance_label"] = torch.from_numpy(covered).float()[None]
    elif "instance_label" in bag:
        bag["instance_label"] = _given_labels(bag["instance_label"], len(coords), source)
    bag["instances"] = _instances_json(coords)
    bag["source"] = source


def in_pitches(coords: Level0Coords, pitch: Level0Pixels) -> PitchCoords:
    """The place of each patch on the lattice of patches, the lowest being 0."""
    return PitchCoords((coords - coords.min(axis=0)) / pitch)


def _opened(path: str | Path) -> AbstractContextManager[h5py.File]:
    return opened_features(path, FORMAT, ("features", "coords"), ATTRIBUTES)


def _header(path: str | Path, file: h5py.File) -> FeatureHeader:
    attributes = file.attrs
    if not (attributes["pitch_level0"] > 0 and attributes["tile_level0"] > 0):
        raise InputError(f"{path} says that pitch_level0 or tile_level0 is not above 0; extract its features again")
    mpp = _or_none(attributes["mpp"])
    return FeatureHeader(
        patches=len(file["features"]),
        encoder=str(attributes["encoder"]),
        slide_id=str(attributes["slide_id"]),
        pitch=Level0Pixels(float(attributes["pitch_level0"])),
        tile=Level0Pixels(float(attributes["tile_level0"])),
        mpp=None if mpp is None else MicronsPerPixel(mpp),
        slide_size=(int(attributes["slide_width"]), int(attributes["slide_height"])),
    )


def _check_arrays(path: str | Path, features: np.ndarray | h5py.Dataset, coords: np.ndarray) -> None:
    advice = f"(file {path}); extract the features again"
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise InputError(f"features {features.shape} and coords {coords.shape} should be (N, D) and (N, 2) {advice}")
    if features.dtype not in (np.float32, np.float16) or not np.issubdtype(coords.dtype, np.integer):
        raise InputError(
            f"features {features.dtype} and coords {coords.dtype} should be float32 or float16 and integers {advice}"
        )


def _given_labels(labels: Any, patches: int, source: str) -> Tensor:
    given = torch.as_tensor(labels, dtype=torch.float32).reshape(1, -1)
    if given.shape[1] != patches:
        raise InputError(f"{given.shape[1]} instance labels for the {patches} patches of {source}; give one per patch")
    return given


def _instances_json(coords: Level0Coords) -> str:
    # text, because a collated batch carries it unharmed
    places = [{"id": index, "x": x, "y": y} for index, (x, y) in enumerate(coords.tolist())]
    return json.dumps(places, separators=(",", ":"))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
