# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic feature files as other people's programs leave them, each on a grid that is known."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from monai.transforms import LoadImaged

from scripts.wsi.features.smooth_mil import PatchFeatures, write_features
from scripts.wsi.reader import FeatureReader
from scripts.wsi.transforms import PatchBagd, PatchBlocksd

DIMENSION = 8
PITCH = 512
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


def edges_of(cells: np.ndarray) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, of the cells that touch, corners included: what the graph of a bag should be."""
    apart = np.abs(cells[:, None] - cells[None]).max(axis=2)
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(apart == 1), strict=True) if i < j}


def write_own(folder: Path, slide_id: str, coords: np.ndarray, pitch: float, **changes: Any) -> Path:
    """This project's own format."""
    usual: dict[str, Any] = {
        "features": some_features(len(coords)),
        "coords": coords,
        "pitch": pitch,
        "tile": pitch,
        "mpp": None,
        "encoder": "mean colour",
        "slide_id": slide_id,
        "slide_size": (20_000, 10_000),
        "origin": (300, 200),
    }
    write_features(folder / f"{slide_id}.h5", PatchFeatures(**{**usual, **changes}))
    return folder / f"{slide_id}.h5"


def write_clam(
    folder: Path, slide_id: str, coords: np.ndarray, patch_size: int | None = 256, downsample: Any = (1.0, 1.0),
    level: int = 0, only_pt: bool = False, features: np.ndarray | None = None, custom_downsample: int = 1,
    older: bool = False,
) -> Path:  # fmt: skip
    """`h5_files` in chunks of one patch, `pt_files`, and `patches` with the attributes unless patch_size is None.

    Of the older way, these stand on the patches themselves, and say no size.
    """
    features = some_features(len(coords)) if features is None else features
    for name in ("h5_files", "pt_files", "patches"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if patch_size is not None:
        with h5py.File(folder / "patches" / f"{slide_id}.h5", "w") as file:
            dataset = file.create_dataset("coords", data=coords, chunks=(1, 2) if len(coords) else None)
            if older:
                dataset = file.create_dataset("imgs", (len(coords), 4, 4, 3), np.uint8, chunks=(1, 4, 4, 3))
            dataset.attrs.update(
                patch_level=level,
                downsample=downsample,
                downsampled_level_dim=(5000 // custom_downsample, 4000 // custom_downsample),
                level_dim=(5000, 4000),
            )
            newer = {"patch_size": patch_size, "name": slide_id, "save_path": str(folder)}
            dataset.attrs.update({"wsi_name": slide_id} if older else newer)
    torch.save(torch.from_numpy(features), folder / "pt_files" / f"{slide_id}.pt")
    if only_pt:
        return folder / "pt_files" / f"{slide_id}.pt"
    path = folder / "h5_files" / f"{slide_id}.h5"
    with h5py.File(path, "w") as file:
        in_chunks = len(features) > 0
        file.create_dataset("features", data=features, chunks=(1, features.shape[1]) if in_chunks else None)
        file.create_dataset("coords", data=coords, chunks=(1, 2) if in_chunks else None)
    return path


def write_trident(
    folder: Path, slide_id: str, coords: np.ndarray, patch_size: int = 256, patch_size_level0: int = 512,
    overlap: int | None = 0, magnifications: tuple[int | None, int | None] = (40, 20), encoder: str = "uni_v1",
    features: np.ndarray | None = None, as_pt: bool = False,
) -> Path:  # fmt: skip
    """An h5, or a .pt of one tensor with `patches` beside."""
    features = some_features(len(coords)) if features is None else features
    path = folder / f"features_{encoder}" / f"{slide_id}{'.pt' if as_pt else '.h5'}"
    patches = folder / "patches" / f"{slide_id}_patches.h5"
    for place in (path, patches) if as_pt else (path,):
        place.parent.mkdir(parents=True, exist_ok=True)
    attributes = {
        "patch_size": patch_size,
        "patch_size_level0": patch_size_level0,
        "overlap": overlap,
        "level0_magnification": magnifications[0],
        "target_magnification": magnifications[1],
        "level0_width": 60_000,
        "level0_height": 50_000,
        "name": slide_id,
        "savetodir": str(folder),
    }
    with h5py.File(patches if as_pt else path, "w") as file:
        if as_pt:
            torch.save(torch.from_numpy(features), path)
        else:
            file.create_dataset("features", data=features, chunks=(1, *features.shape[1:]) if len(coords) else None)
            file["features"].attrs.update(name=slide_id, savetodir=str(folder), encoder=encoder)
        file["coords"] = np.asarray(coords, np.int64)
        for name, value in attributes.items():
            file["coords"].attrs[name] = "None" if value is None else value
    return path


def write_uni2h(folder: Path, slide_id: str, coords: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slide_id}.h5"
    with h5py.File(path, "w") as file:
        file["features"] = some_features(len(coords))[None]
        file["coords"], file["coords_patching"] = coords[None], coords
        file["annots"] = np.zeros((1, len(coords), 1), np.int64)
    return path


def write_stamp(
    folder: Path, slide_id: str, coords_um: np.ndarray, tile_um: float = 256.0, attributes: bool = True, **more: Any
) -> Path:
    """Without the attributes as of version 1."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slide_id}.h5"
    with h5py.File(path, "w") as file:
        file["feats"] = some_features(len(coords_um), dtype=np.float16)
        file["coords"] = coords_um
        if attributes:
            file.attrs.update(
                stamp_version="2.3.0", extractor="uni2", unit="um", tile_size_um=tile_um, tile_size_px=224
            )
        file.attrs.update(more)
    return path


def write_torchmil(
    folder: Path, bag: str, coords: np.ndarray, labels: np.ndarray, encoder: str = "resnet50", suffix: str = ".npy"
) -> Path:
    """An array per file, .npy or .h5."""
    arrays = {
        f"features_{encoder}": some_features(len(coords)),
        "coords": coords,
        "patch_labels": labels,
        "labels": np.array(int(labels.any())),
    }
    for name, array in arrays.items():
        path = folder / name / f"{bag}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(path, array)
            continue
        with h5py.File(path, "w") as file:
            file[name.removesuffix(f"_{encoder}").replace("patch", "inst")] = array
    return folder / f"features_{encoder}" / f"{bag}{suffix}"


def load_image() -> LoadImaged:
    reader: Any = FeatureReader()  # MONAI's annotation forgets that it takes an instance
    return LoadImaged(keys="image", reader=reader, image_only=True)


def load(**item: object) -> dict:
    return PatchBagd("image")(load_image()(item))  # not composed: an error comes as it is


def in_blocks(**item: Any) -> dict:
    bag: Any = item
    return PatchBlocksd("image")(bag)


def write_cells(folder: Path, name: str = "a", cells: np.ndarray = CELLS, **given: Any) -> str:
    return str(write_trident(folder, name, cells * PITCH, **given))


def square(folder: Path, name: str, left: float, top: float, side: float) -> str:
    ring = [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]
    path = folder / f"{name}.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return str(path)
