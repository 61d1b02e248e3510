# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic feature files as this project and other people's programs leave them, each on a grid that is known."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from monai.transforms import LoadImaged
from torch import Tensor

from scripts.core.units import Level0Coords, Level0Pixels, MicronsPerPixel
from scripts.networks.graph import build_graph
from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from scripts.wsi.reader import FeatureReader, opened_blocks
from scripts.wsi.transforms import PatchBagd, PatchBlocksd

DIMENSION = 8
PITCH = 512
NOTHING: Mapping[str, Any] = {}
CELLS = np.array([[4, 9], [5, 9], [9, 7], [4, 8], [5, 7], [8, 8], [10, 9]])


def tissue(columns: int = 20, rows: int = 14, share: float = 0.85, seed: int = 0) -> np.ndarray:
    """(N, 2) column, row of an ellipse of patches with holes, in no order."""
    column, row = np.meshgrid(np.arange(columns), np.arange(rows))
    inside = ((column + 0.5) / columns - 0.5) ** 2 + ((row + 0.5) / rows - 0.5) ** 2 < 0.25
    rng = np.random.default_rng(seed)
    cells = np.stack([column[inside], row[inside]], axis=1)
    return rng.permutation(cells[rng.random(len(cells)) < share])


def some_features(patches: int, dimension: int = DIMENSION, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(patches, dimension)).astype(dtype)


def grid(patches: int, pitch: float = PITCH, columns: int = 4) -> np.ndarray:
    """(N, 2) corners, row by row."""
    return np.stack(np.divmod(np.arange(patches), columns)[::-1], axis=1) * pitch


def random_features(name: str, patches: int = 12, dimension: int = 4) -> np.ndarray:
    """Different for every name."""
    return some_features(patches, dimension, seed=zlib.crc32(name.encode()))


def edges_of(cells: np.ndarray) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, of the cells that touch, corners included: what the graph of a bag should be."""
    apart = np.abs(cells[:, None] - cells[None]).max(axis=2)
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(apart == 1), strict=True) if i < j}


def graph_edges(bag: Mapping[Any, Any]) -> set[tuple[int, int]]:
    """The pairs that the graph of a loaded bag has."""
    graph = build_graph(bag["coords"][None], bag["mask"][None])
    step, here = torch.nonzero(graph.weights[0] > 0, as_tuple=True)
    return {(int(i), int(j)) for i, j in zip(here, graph.neighbours[0][step, here], strict=True) if i < j}


def own_slide(name: str, patches: int = 12, dimension: int = 4, **changes: Any) -> PatchFeatures:
    """12 patches, 3 rows of 4: the mean degree is (4·3 + 6·5 + 2·8) / 12 = 58 / 12."""
    usual: dict[str, Any] = {
        "features": random_features(name, patches, dimension),
        "coords": Level0Coords(grid(patches)),
        "pitch": Level0Pixels(PITCH),
        "tile": Level0Pixels(PITCH),
        "mpp": MicronsPerPixel(0.25),
        "encoder": "tiny",
        "slide_id": name,
        "slide_size": (4096, 4096),
    }
    return PatchFeatures(**{**usual, **changes})


def own(path: Path, patches: int = 12, dimension: int = 4, **changes: Any) -> Path:
    """This project's own format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_features(path, own_slide(path.stem, patches, dimension, **changes))
    return path


def write_h5(path: Path, attributes: Mapping[str, Any] = NOTHING, rows: int | None = None, **arrays: Any) -> Path:
    """A dataset of each array, in chunks of so many rows or in one piece, and attributes of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]) if rows and array.size else None)
        file.attrs.update(attributes)
    return path


def write_clam(
    folder: Path, slide_id: str, coords: np.ndarray, patch_size: int | None = 256, downsample: Any = (1.0, 1.0),
    level: int = 0, only_pt: bool = False, features: np.ndarray | None = None, custom_downsample: int = 1,
    older: bool = False,
) -> Path:  # fmt: skip
    """`h5_files` in chunks of one patch, `pt_files`, and `patches` with the attributes unless patch_size is None.

    Of the older way, these stand on the patches themselves, and say no size.
    """
    features = some_features(len(coords)) if features is None else features
    if patch_size is not None:
        images: dict[str, Any] = {"imgs": np.zeros((len(coords), 4, 4, 3), np.uint8)} if older else {}
        patches = write_h5(folder / "patches" / f"{slide_id}.h5", rows=1, coords=coords, **images)
        stated = {"patch_level": level, "downsample": downsample, "level_dim": (5000, 4000)}
        stated["downsampled_level_dim"] = (5000 // custom_downsample, 4000 // custom_downsample)
        with h5py.File(patches, "r+") as file:
            file["imgs" if older else "coords"].attrs.update(stated if older else {**stated, "patch_size": patch_size})
    path = folder / "pt_files" / f"{slide_id}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(features), path)
    if only_pt:
        return path
    return write_h5(folder / "h5_files" / f"{slide_id}.h5", rows=1, features=features, coords=coords)


def write_trident(
    folder: Path, slide_id: str, coords: np.ndarray, patch_size_level0: int = 512, overlap: int | None = 0,
    magnifications: tuple[int | None, int | None] = (40, 20), encoder: str = "uni_v1",
    features: np.ndarray | None = None, as_pt: bool = False, size: tuple[int, int] = (60_000, 50_000),
) -> Path:  # fmt: skip
    """An h5, or a .pt of one tensor with `patches` beside."""
    features = some_features(len(coords)) if features is None else features
    path = folder / f"features_{encoder}" / f"{slide_id}{'.pt' if as_pt else '.h5'}"
    patches = folder / "patches" / f"{slide_id}_patches.h5"
    for place in (path, patches) if as_pt else (path,):
        place.parent.mkdir(parents=True, exist_ok=True)
    attributes = {
        "patch_size": 256,
        "patch_size_level0": patch_size_level0,
        "overlap": overlap,
        "level0_magnification": magnifications[0],
        "target_magnification": magnifications[1],
        "level0_width": size[0],
        "level0_height": size[1],
        "name": slide_id,
    }
    with h5py.File(patches if as_pt else path, "w") as file:
        if as_pt:
            torch.save(torch.from_numpy(features), path)
        else:
            file.create_dataset("features", data=features, chunks=(1, *features.shape[1:]) if len(coords) else None)
            file["features"].attrs.update(name=slide_id, encoder=encoder)
        file["coords"] = np.asarray(coords, np.int64)
        for name, value in attributes.items():
            file["coords"].attrs[name] = "None" if value is None else value
    return path


def write_uni2h(folder: Path, slide_id: str, coords: np.ndarray) -> Path:
    path, nothing = folder / f"{slide_id}.h5", np.zeros((1, len(coords), 1), np.int64)
    features = some_features(len(coords))[None]
    return write_h5(path, features=features, coords=coords[None], coords_patching=coords, annots=nothing)


def write_stamp(
    folder: Path, slide_id: str, coords_um: np.ndarray, tile_um: float = 256.0, attributes: bool = True, **more: Any
) -> Path:
    """Without the attributes as of version 1."""
    stated = {"stamp_version": "2.3.0", "extractor": "uni2", "unit": "um", "tile_size_um": tile_um, "tile_size_px": 224}
    features = some_features(len(coords_um), dtype=np.float16)
    path = folder / f"{slide_id}.h5"
    return write_h5(path, {**(stated if attributes else {}), **more}, feats=features, coords=coords_um)


def write_torchmil(
    folder: Path, bag: str, coords: np.ndarray, labels: np.ndarray | None = None, suffix: str = ".npy",
    features: str = "features_resnet50",
) -> Path:  # fmt: skip
    """An array per file, .npy or .h5; of its published cohorts `features` is features/features_UNI."""
    labels = np.zeros(len(coords), int) if labels is None else labels
    arrays: dict[tuple[str, str], Any] = {
        ("features", features): some_features(len(coords)),
        ("coords", "coords"): coords,
        ("inst_labels", "patch_labels"): labels,
        ("labels", "labels"): np.array(int(labels.any())),
    }
    for (name, place), array in arrays.items():
        path = folder / place / f"{bag}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(path, array)
        else:
            write_h5(path, **{name: array})
    return folder / features / f"{bag}{suffix}"


# Whole cohorts: each slide has 12 patches, and features unlike those of any other.


def clam(folder: Path, name: str) -> Path:
    """Its two files of a slide, without an attribute."""
    return write_clam(folder, name, grid(12), patch_size=None, features=random_features(name))


def trident(
    folder: Path, name: str, encoder: str = "uni_v1", patches: int = 12, target: int = 20, known: bool = True
) -> Path:
    """Of a slide at 40x, patches of 256 pixels at 20x, so of 512 at level 0; the 40x is stated, or not."""
    side = 256 * 40 // target
    return write_trident(
        folder / f"{target}x_256px_0px_overlap", name, grid(patches, side), side, encoder=encoder, size=(2048, 1024),
        magnifications=(40 if known else None, target), features=random_features(f"{name} {encoder}", patches),
    )  # fmt: skip


def torchmil(root: Path, name: str, positive: int, features: str = "features_UNI") -> Path:
    """A slide is positive if any of its patches is."""
    return write_torchmil(root / "patches_512", name, grid(12), np.arange(12) < positive, features=features)


def datalist(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What was written for such a cohort."""
    content: dict[str, list[dict[str, Any]]] = json.loads((folder / "datalist.json").read_text())
    return content


def write(path: Path, *lines: str) -> Path:
    """A csv, or any text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def load(settings: Mapping[str, Any] = NOTHING, /, **item: Any) -> dict:
    """With settings of the transform; not composed, so that an error comes as it is."""
    reader: Any = FeatureReader()  # MONAI's annotation forgets that it takes an instance
    return PatchBagd(**settings)(LoadImaged("image", reader=reader, image_only=True)(item))


def blocks_of(path: str, size: int) -> list[Tensor]:
    """All blocks of a bag; each stays what it was."""
    with opened_blocks(path, size) as blocks:
        return list(blocks())


def in_blocks(settings: Mapping[str, Any] = NOTHING, /, **item: Any) -> dict:
    bag: Any = item
    return PatchBlocksd(**settings)(bag)


def write_cells(folder: Path, name: str = "a", cells: np.ndarray = CELLS, **given: Any) -> str:
    return str(write_trident(folder, name, cells * PITCH, **given))


def square(folder: Path, name: str, left: float, top: float, side: float) -> str:
    """An annotation of a tumour."""
    ring = [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]
    drawn = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path = folder / f"{name}.geojson"
    path.write_text(json.dumps({**drawn, "properties": {"classification": {"name": "Tumor"}}}))
    return str(path)
