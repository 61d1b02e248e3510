# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in files of any kind, read in blocks and never run as code: HDF5, npy, npz, torch, safetensors."""

import json
import math
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from scripts.core.errors import InputError
from scripts.core.hdf5 import require_own

ZIP = b"PK\x03\x04"  # what a zipped file begins with
MOST_COMPRESSED = 1100  # deflate makes data 1032 times smaller at best: a file that claims more is damaged
UNREADABLE = (  # what h5py, numpy and torch raise for a damaged file
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, EOFError),
    *(MemoryError, SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error),
)
BFLOAT16 = np.dtype("V2")  # which numpy does not know
TYPES_OF_SAFETENSORS = {f"{name}{8 * size}": f"<{name.lower()}{size}" for name in "FIU" for size in (2, 4, 8)}
NUMBERS_OF_TORCH = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)

Rows = Callable[[int, int], np.ndarray]  # start, stop → (n, D)


class StoredArray(NamedTuple):
    """An array of a file, such as its features, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Rows

    def whole(self) -> np.ndarray:
        return self.rows(0, self.shape[0])


Arrays = Mapping[str, StoredArray]


@contextmanager
def one_line_damage(path: Path) -> Iterator[None]:
    """Turn what h5py, numpy or torch raise into one line; only around their calls, as a fault of ours is none of it."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} may not be read; ask for the right to") from error
    except UNREADABLE as error:
        raise InputError(f"{path} is damaged or cut short; copy it again or extract its features again") from error


def refuse_claim(path: Path, shape: Sequence[int], itemsize: int, stored: int) -> None:
    if math.prod(shape) * itemsize > MOST_COMPRESSED * stored:
        raise InputError(f"{path} claims {tuple(shape)} numbers and holds {stored} bytes; extract its features again")


def without_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an array (N, D), of one that may be stored as a batch of one, (1, N, D)."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def hdf5_array(path: Path, dataset: h5py.Dataset) -> StoredArray:
    """Return a dataset, whose size the file can hold."""
    require_own(path, dataset)
    refuse_claim(path, dataset.shape, dataset.dtype.itemsize, min(dataset.id.get_storage_size(), path.stat().st_size))
    shape, offset = without_batch(dataset.shape), dataset.id.get_offset()
    if offset is not None and dataset.file.userblock_size == 0 and len(shape) == 2:
        rows = mapped_rows(path, dataset.dtype, offset, shape[1])
    else:  # in chunks, which HDF5 must put together
        first = () if shape == dataset.shape else (0,)
        rows = lambda start, stop: dataset[(*first, slice(start, stop))]  # noqa: E731
    return StoredArray(shape, dataset.dtype, rows)


def npy_array(path: Path) -> StoredArray:
    with one_line_damage(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise InputError(f"{path} is not one array; save it with numpy.save")
    shape = without_batch(array.shape)
    rows = lambda start, stop: np.array(array.reshape(shape)[start:stop])  # noqa: E731
    if len(shape) == 2 and array.flags.c_contiguous and array.size:
        rows = mapped_rows(path, array.dtype, array.offset, shape[1])
    return StoredArray(shape, array.dtype, rows)


def mapped_rows(path: Path, dtype: np.dtype, offset: int, dimension: int) -> Rows:
    """Return how rows are read of an array in one piece: each block is a map of its own, whose memory goes with it."""

    def rows(start: int, stop: int) -> np.ndarray:
        begin = offset + start * dimension * dtype.itemsize
        # as a text: of a path numpy would look up what it links to, of every block
        return np.asarray(np.memmap(str(path), dtype, mode="c", offset=begin, shape=(stop - start, dimension)))

    return rows


def torch_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Return the tensors of a torch file, mapped into memory where the file allows it, and what else a dict holds.

    One tensor alone goes by the name "".
    """
    with one_line_damage(path), path.open("rb") as raw:
        is_mapped = raw.read(len(ZIP)) == ZIP
    named = _torch_content(path, is_mapped)
    unread = None if is_mapped else named
    if named.keys() == {""} and not _is_of_numbers(alone := named[""]):
        what = type(alone).__name__
        if isinstance(alone, Tensor):
            what = f"{alone.layout} tensor of {alone.dtype} on {alone.device}"
        raise InputError(f"{path} holds a {what}, not features; save a tensor of float32 numbers, or give the h5 file")

    def array(name: str, shape: tuple[int, ...]) -> StoredArray:
        def rows(start: int, stop: int) -> np.ndarray:
            # a map of its own goes with the block
            tensor: Tensor = (_torch_content(path, True) if unread is None else unread)[name]
            part = tensor.detach().reshape(shape)[start:stop]
            found: np.ndarray = (part.float() if part.dtype == torch.bfloat16 else part).numpy()
            return found

        return StoredArray(shape, rows(0, 0).dtype, rows)

    arrays = {}
    for name, each in named.items():
        if _is_of_numbers(each):
            refuse_claim(path, each.shape, each.element_size(), path.stat().st_size)
            with one_line_damage(path):
                arrays[name] = array(name, without_batch(tuple(each.shape)))
    return arrays, {name: each for name, each in named.items() if isinstance(each, (str, int, float, list))}


def _torch_content(path: Path, is_mapped: bool) -> dict[str, Any]:
    """Return a dict by its keys, which may be numbers, as texts; anything else by the name ""."""
    with one_line_damage(path):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
        except pickle.UnpicklingError as error:  # of arrays of numpy too, as TRIDENT's are
            raise InputError(f"{path} holds something else than tensors, or is damaged; give the h5 file") from error
        return {str(key): each for key, each in content.items()} if isinstance(content, dict) else {"": content}


def _is_of_numbers(content: object) -> bool:
    """Return whether numpy can hold it: it is in memory, in rows, and of numbers that numpy knows, or bfloat16."""
    return (
        isinstance(content, Tensor)
        and content.layout == torch.strided
        and content.device.type == "cpu"
        and not content.is_quantized
        and content.ndim > 0
        and content.dtype in NUMBERS_OF_TORCH
    )


def npz_arrays(path: Path) -> Arrays:
    """Return the arrays of numbers in a zip of npy files; each is read whole when its first rows are asked for."""
    arrays = {}
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            with file.open(member) as raw:
                if not member.filename.endswith(".npy"):
                    continue
                version = np.lib.format.read_magic(raw)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(raw)
            if dtype.kind in "fiub" and shape:
                refuse_claim(path, shape, dtype.itemsize, member.compress_size)
                shape = without_batch(shape)
                rows = _rows_of(path, member.filename, shape)
                arrays[member.filename.removesuffix(".npy")] = StoredArray(shape, dtype, rows)
    return arrays


def _rows_of(path: Path, member: str, shape: tuple[int, ...]) -> Rows:
    @cache
    def whole() -> np.ndarray:
        with np.load(path) as file:
            return file[member].reshape(shape)

    return lambda start, stop: whole()[start:stop]


def safetensors_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Return the tensors of a file of safetensors, which are mapped, and its metadata."""
    size = path.stat().st_size
    with path.open("rb") as raw:
        begin = 8 + int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(min(begin, size) - 8))
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, about in header.items():
        shape, (start, stop) = tuple(map(int, about["shape"])), about["data_offsets"]
        dtype = BFLOAT16 if about["dtype"] == "BF16" else np.dtype(TYPES_OF_SAFETENSORS.get(about["dtype"], "V1"))
        if not 0 <= start <= stop <= size - begin or math.prod(shape) * dtype.itemsize != stop - start:
            raise ValueError(name)
        shape = without_batch(shape)
        if dtype.kind in "fiu" and len(shape) == 2:
            arrays[name] = StoredArray(shape, dtype, mapped_rows(path, dtype, begin + start, shape[1]))
        elif dtype == BFLOAT16 and len(shape) == 2:
            halves = mapped_rows(path, np.dtype("<u2"), begin + start, shape[1])
            arrays[name] = StoredArray(shape, np.dtype(np.float32), _as_float32(halves))
    return arrays, metadata


def _as_float32(halves: Rows) -> Rows:
    """Return the upper halves of float32 numbers, which bfloat16 are, as those."""
    return lambda start, stop: (halves(start, stop).astype(np.uint32) << 16).view(np.float32)
