# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Feature files as programs leave them in npy, npz, torch, safetensors and Zarr, by what their sources write."""

import gzip
import json
import pickle
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import shapely
import torch
from pyarrow import parquet

from tests.wsi.foreign_features import NOTHING, some_features, write_h5


class Harm:
    """What a pickle of it would run when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("run as code",)


def write_atlaspatch(
    folder: Path, slide_id: str, coords: np.ndarray, encoders: tuple[str, ...] = ("uni_v1",), overlap: int = 0
) -> Path:
    """Of atlas-patch 1.1.0: `patches/<slide>.h5`, patches of 256 pixels at 20x of a slide at 40x."""
    stated = {"patch_size": 256, "patch_size_level0": 512, "overlap": overlap, "target_magnification": 20}
    stated |= {"level0_magnification": 40, "level0_width": 60_000, "level0_height": 50_000}
    about = np.tile([256, 256, 1], (len(coords), 1))
    path = folder / "patches" / f"{slide_id}.h5"
    write_h5(path, stated, coords=np.concatenate([coords, about], axis=1).astype(np.int32))
    with h5py.File(path, "r+") as file:
        for encoder in encoders:
            file[f"features/{encoder}"] = some_features(len(coords))
    return path


def write_slideflow(folder: Path, slide_id: str, coords: np.ndarray, tile: int = 512, config: bool = True) -> Path:
    """Of slideflow 3.0.2: the index holds centres, and the configuration of the folder the class of the encoder."""
    path = folder / "bags" / f"{slide_id}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(some_features(len(coords))), path)
    np.savez(path.with_name(f"{slide_id}.index"), arr_0=coords + tile // 2)
    if config:
        extractor = {"class": "slideflow.model.extractors.uni.UNIFeatures", "kwargs": {}}
        path.with_name("bags_config.json").write_text(json.dumps({"extractor": extractor, "tile_um": 128}))
    return path


def write_owkin(folder: Path, slide_id: str, cells: np.ndarray, level: Any = 15) -> Path:
    """Columns of level, x and y before the features."""
    path = folder / slide_id / "features.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.broadcast_to(level, len(cells))[:, None]
    np.save(path, np.concatenate([levels, cells, some_features(len(cells))], axis=1).astype(np.float32))
    return path


def _edges(coords: np.ndarray, side: int) -> np.ndarray:
    return np.concatenate([coords, coords + side], axis=1)


def write_tiatoolbox(
    folder: Path, slide_id: str, coords: np.ndarray, number: int = 0, listed: object = NOTHING
) -> Path:
    """Of tiatoolbox 1: numbered files, and the list of the slides, a pickle by joblib; None = no list."""
    path = folder / f"{number}.features.0.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, some_features(len(coords)))
    np.save(folder / f"{number}.position.npy", _edges(coords, 224))
    if listed is not None:
        pairs = [[f"/slides/{slide_id}.svs", f"{folder}/{number}"]] if listed is NOTHING else listed
        (folder / "file_map.dat").write_bytes(pickle.dumps(pairs))
    return path


def write_tiatoolbox_zarr(folder: Path, slide_id: str, coords: np.ndarray, **how: Any) -> Path:
    """Of tiatoolbox 2."""
    store = zarr_group(folder / f"{slide_id}.zarr", **how)
    zarr_array(store / "features", some_features(len(coords)), **how)
    zarr_array(store / "coordinates", _edges(coords, 224), **how)
    return store


def write_spatialdata(
    folder: Path, slide_id: str, coords: np.ndarray, encoders: tuple[str, ...] = ("uni",), spec: bool = True,
    order: np.ndarray | None = None, transformation: str = "identity", **how: Any,
) -> Path:  # fmt: skip
    """Of lazyslide 0.13.0 with wsidata 0.12.0: tiles of 256 pixels at half the resolution of level 0."""
    sides = {"width": 256, "height": 256, "stride_width": 256, "stride_height": 256, "base_downsample": 2.0}
    about = {"tile_spec": {"tiles": sides}, "slide_properties": {"mpp": 0.25, "shape": [50_000, 60_000]}}
    store, numbers = zarr_group(folder / f"{slide_id}.zarr", about if spec else {}, **how), np.arange(len(coords))
    for encoder in encoders:
        table = zarr_group(store / "tables" / f"{encoder}_tiles", {"region": "tiles", "instance_key": "tile_id"}, **how)
        zarr_array(table / "X", some_features(len(coords)), **how)
        zarr_array(table / "obs" / "tile_id", numbers if order is None else order, **how)
    shapes = zarr_group(store / "shapes" / "tiles", {"coordinateTransformations": [{"type": transformation}]}, **how)
    tiles = shapely.to_wkb(shapely.box(*coords.T, *(coords + 512).T))
    parquet.write_table(pyarrow.table({"tile_id": numbers, "geometry": tiles}), shapes / "shapes.parquet")
    return store


def write_npz(folder: Path, slide_id: str, coords: np.ndarray, features: str = "features", **more: Any) -> Path:
    path = folder / "features_uni" / f"{slide_id}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{features: some_features(len(coords)), "coords": coords, **more})
    return path


def write_dict(folder: Path, slide_id: str, coords: np.ndarray, **more: Any) -> Path:
    path = folder / "features_x" / f"{slide_id}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"feats": torch.from_numpy(some_features(len(coords))), "coords": torch.from_numpy(coords)}
    torch.save({**arrays, "patch_size_level0": 512, "model_name": "uni", **more}, path)
    return path


def write_hest(folder: Path, slide_id: str, coords: np.ndarray) -> Path:
    barcodes = np.array([b"A"] * len(coords))
    return write_h5(folder / f"{slide_id}.h5", embeddings=some_features(len(coords)), coords=coords, barcodes=barcodes)


def write_safetensors(folder: Path, slide_id: str, coords: np.ndarray, **more: np.ndarray) -> Path:
    """Length of the header, header, numbers; as bfloat16, the upper halves, where an array is of uint32."""
    arrays = {"features": some_features(len(coords)), "coords": coords, **more}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "encoder": "uni"}}
    content = b""
    for name, array in arrays.items():
        kind = "BF16" if array.dtype == np.uint32 else f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
        raw = (array >> 16).astype("<u2").tobytes() if kind == "BF16" else array.tobytes()
        about = {"dtype": kind, "shape": list(array.shape)}
        header[name] = {**about, "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    path = folder / "features_x" / f"{slide_id}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


COMPRESSED = {
    "zstd": lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True),
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "": bytes,
}


def zarr_group(folder: Path, attributes: Mapping[str, Any] = NOTHING, version: int = 3, **_: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if version == 3:
        (folder / "zarr.json").write_text(json.dumps({"node_type": "group", "attributes": {**attributes}}))
    else:
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps({**attributes}))
    return folder


def zarr_array(
    folder: Path, array: np.ndarray, version: int = 3, codec: str = "zstd", chunk: tuple[int, ...] = (50, 5),
    missing: tuple[int, ...] | None = None,
) -> Path:  # fmt: skip
    """An array in chunks, all but one that is missing; those at its ends reach beyond it."""
    chunk, separator = chunk[: array.ndim], "/" if version == 3 else "."
    about: dict[str, Any] = {"shape": list(array.shape), "fill_value": 0}
    if version == 3:
        codecs: list[Any] = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            *([{"name": codec}] * bool(codec)),
        ]
        about["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}
        about["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
        about |= {"node_type": "array", "data_type": array.dtype.name, "codecs": codecs}
    else:
        about |= {"chunks": list(chunk), "dtype": array.dtype.str, "order": "C"}
        about |= {"compressor": {"id": codec} if codec else None, "filters": None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("zarr.json" if version == 3 else ".zarray")).write_text(json.dumps(about))
    counts = [-(-side // part) for side, part in zip(array.shape, chunk, strict=True)]
    for at in np.ndindex(*counts):
        begin = [number * part for number, part in zip(at, chunk, strict=True)]
        whole = np.zeros(chunk, array.dtype)
        cut = array[tuple(slice(start, start + part) for start, part in zip(begin, chunk, strict=True))]
        whole[tuple(map(slice, cut.shape))] = cut
        name = separator.join(map(str, at))
        path = folder / (f"c/{name}" if version == 3 else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if at != missing:
            path.write_bytes(COMPRESSED[codec](whole.tobytes()))
    return folder
