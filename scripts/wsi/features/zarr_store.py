# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays of numbers in a Zarr store, a folder of versions 2 or 3, read chunk by chunk without another package.

Compressed by zlib, gzip or zstd, as today's stores are; Blosc's, which was the default of version 2, needs numcodecs.
"""

import json
import math
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.core.errors import InputError
from scripts.wsi.features.arrays import UNREADABLE, StoredArray, refuse_claim

CODECS = (None, "zlib", "gzip", "zstd", "blosc")
MOST_BYTES_OF_A_CHUNK = 2**31
ADVICE = "write the arrays again without it, or as an npz"


class Layout(NamedTuple):
    """How an array lies in its folder."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype
    codec: str | None  # None = not compressed
    fill: float
    prefix: str  # of the file of a chunk
    separator: str


def is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def zarr_attributes(store: Path, group: str = "") -> dict[str, Any]:
    """Return the attributes of a group; empty where there is none."""
    found = _json_of(store, f"{group}/zarr.json").get("attributes") or _json_of(store, f"{group}/.zattrs")
    return found if isinstance(found, dict) else {}


def zarr_arrays(store: Path) -> dict[str, StoredArray]:
    """Return the arrays of numbers right in a store, by their names; what cannot be read is passed over."""
    found = {}
    for name in zarr_names(store):
        with suppress(*UNREADABLE):
            array = zarr_array(store, name)
            if array is not None:
                found[name] = array
    return found


def zarr_names(store: Path) -> list[str]:
    """Return the names of what lies right in a store, groups too."""
    return sorted(each.name for each in store.iterdir() if each.is_dir())


def zarr_array(store: Path, name: str) -> StoredArray | None:
    """Return an array of numbers with one or two axes; None where there is none of this name."""
    of_3, of_2 = _json_of(store, f"{name}/zarr.json"), _json_of(store, f"{name}/.zarray")
    if of_3.get("node_type") != "array" and not of_2:
        return None
    layout = _readable_layout(store, _layout_of_3(store, of_3) if of_3 else _layout_of_2(store, of_2))
    folder = inside_store(store, store / name)
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    refuse_claim(folder, layout.shape, layout.dtype.itemsize, stored)
    if not 1 <= len(layout.shape) <= 2 or math.prod(layout.chunk) * layout.dtype.itemsize > MOST_BYTES_OF_A_CHUNK:
        raise InputError(f"{folder} has {layout.shape} numbers in chunks of {layout.chunk}; give two axes and less")
    high = layout.chunk[0]

    @lru_cache(maxsize=1)  # as blocks are read in order
    def band(number: int) -> np.ndarray:
        across = map(math.ceil, np.divide(layout.shape[1:], layout.chunk[1:]))
        chunks = [_chunk(store, folder, layout, (number, *beside)) for beside in np.ndindex(*across)]
        return np.concatenate(chunks, axis=-1)[..., : layout.shape[-1]]

    def rows(start: int, stop: int) -> np.ndarray:
        parts = [
            band(number)[max(0, start - number * high) : stop - number * high]
            for number in range(start // high, math.ceil(stop / high))
        ]
        return np.concatenate(parts) if parts else np.zeros((0, *layout.shape[1:]), layout.dtype)

    return StoredArray(layout.shape, layout.dtype, rows)


def inside_store(store: Path, path: Path) -> Path:
    """Return a path, or refuse one that a link leads out of its store."""
    if not path.resolve().is_relative_to(store.resolve()):
        raise InputError(f"{path} lies outside of its Zarr store; give a store that holds its own arrays")
    return path


def _json_of(store: Path, name: str) -> dict[str, Any]:
    path = store / name.lstrip("/")
    if not path.is_file():
        return {}
    found = json.loads(inside_store(store, path).read_text())
    return found if isinstance(found, dict) else {}


def _layout_of_2(store: Path, about: dict[str, Any]) -> Layout:
    codec = about.get("compressor")
    if about.get("filters") or about.get("order", "C") != "C":
        raise InputError(f"{store} holds an array with filters or in Fortran's order; {ADVICE}")
    dtype, separator = np.dtype(about["dtype"]), about.get("dimension_separator", ".")
    name = None if codec is None else str(codec["id"])
    return Layout(about["shape"], about["chunks"], dtype, name, about.get("fill_value") or 0, "", separator)


def _layout_of_3(store: Path, about: dict[str, Any]) -> Layout:
    first, *others = about["codecs"]
    if first["name"] != "bytes" or len(others) > 1:
        raise InputError(f"{store} holds an array in shards or by {first['name']}; {ADVICE}")
    order = "<" if first.get("configuration", {}).get("endian", "little") == "little" else ">"
    dtype, key = np.dtype(about["data_type"]).newbyteorder(order), about["chunk_key_encoding"]
    of_3 = key["name"] == "default"
    separator = key.get("configuration", {}).get("separator", "/" if of_3 else ".")
    chunk = about["chunk_grid"]["configuration"]["chunk_shape"]
    name = str(others[0]["name"]) if others else None
    prefix = f"c{separator}" if of_3 else ""
    return Layout(about["shape"], chunk, dtype, name, about.get("fill_value") or 0, prefix, separator)


def _readable_layout(store: Path, stated: Layout) -> Layout:
    """Return a layout that can be read, in numbers, of what JSON states."""
    if stated.dtype.kind not in "fiu" or stated.separator not in ("/", ".") or stated.codec not in CODECS:
        what = f"{stated.dtype} by {str(stated.codec)[:20]}"
        raise InputError(f"{store} holds an array of {what}, which is not read; {ADVICE}")
    shape, chunk = tuple(map(int, stated.shape)), tuple(map(int, stated.chunk))
    if len(chunk) != len(shape) or min(chunk, default=0) < 1 or min(shape) < 0:
        raise InputError(f"{store} holds an array of {shape} in chunks of {chunk}; {ADVICE}")
    return stated._replace(shape=shape, chunk=chunk, fill=float(stated.fill))


def _chunk(store: Path, folder: Path, layout: Layout, at: tuple[int, ...]) -> np.ndarray:
    """Return one chunk, which at the end of an axis reaches beyond it; one that was never written is full of one."""
    path = folder / (layout.prefix + layout.separator.join(map(str, at)))
    bottom = layout.shape[0] - at[0] * layout.chunk[0]
    if not path.is_file():
        return np.full(layout.chunk, layout.fill, layout.dtype)[:bottom]
    raw = _decompressed(inside_store(store, path), layout.codec, math.prod(layout.chunk) * layout.dtype.itemsize)
    return np.frombuffer(raw, layout.dtype).reshape(layout.chunk)[:bottom]


def _decompressed(path: Path, codec: str | None, size: int) -> bytes:
    """Return so many bytes, or raise what tells of damage."""
    raw = path.read_bytes()
    if codec in ("zlib", "gzip"):
        return zlib.decompressobj(wbits=47).decompress(raw, size + 1)
    if codec == "zstd":
        try:
            import pyarrow  # which MLflow brings
        except ImportError as error:
            raise InputError(f"{path} is compressed by zstd, which needs a package: pip install pyarrow") from error
        found: bytes = pyarrow.decompress(raw, size, codec="zstd", asbytes=True)
        return found
    if codec == "blosc":
        try:
            from numcodecs import blosc
        except ImportError as error:
            what = "is compressed by Blosc, which needs a package: pip install numcodecs"
            raise InputError(f"{path} {what}, or write it with zarr 3") from error
        if int.from_bytes(raw[4:8], "little") != size:
            raise ValueError("another size than the chunk's")
        return bytes(blosc.decompress(raw))
    return raw
