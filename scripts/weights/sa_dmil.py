# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The released weights of SA-DMIL (arXiv 2307.09457): from a TensorFlow checkpoint to the network of configs/ct.

First the mapping of the tensors, then the reader of checkpoints, which needs no TensorFlow.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scripts.core.errors import InputError

SA_DMIL_CONFIG: dict[str, Any] = {  # every scan was filled up to so many slices, which were flagged by attention
    "network_def#slots": 57,
    "score": "attention",
    "score_smoothing": 0,
}
RELEASED = {  # name → how the sha256 of its .data file begins
    "baseline": "fc734d204520a3f38b34131edad05c4e742544c3f85205e4cec455d10bfe823d",
    "att_0_5": "bc43e206fdeaead16290d822e33ff07cf5fdccb2dea06aa313592d5b26ef519a",
    "att_0_9": "57ae38f0",  # no more of it is known
}
CHANNELS = (3, 16, 32, 32, 32, 32, 32)  # before the first block and behind each of the six
CONVOLUTIONS = (0, 4, 9, 13, 17, 22)  # their indices in SliceCNN.blocks; the batch norm is two further on
FEATURES, HIDDEN_ATTENTION, HIDDEN_HEAD = 6 * 6 * 32, 64, 128  # features in the order row, column, channel
AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}  # of their kernels, matrices and vectors, in the order of ours
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}

Tensors = Mapping[str, np.ndarray]


def released_as(sha256: str) -> str | None:
    """Return the name of a released checkpoint, from the sha256 of its .data file."""
    return next((name for name, beginning in RELEASED.items() if sha256.startswith(beginning)), None)


def head_outputs(tensors: Tensors) -> int:
    """Return the number of outputs of the head: one logit, or one for each of two classes."""
    bias = tensors.get(_full_name("14/bias"))
    return 2 if bias is not None and bias.shape == (2,) else 1


def state_dict(tensors: Tensors) -> dict[str, Tensor]:
    """Return what the network of configs/ct/train.json loads.

    A head of two outputs becomes the difference class 1 - class 0, whose sigmoid is their softmax.
    """
    outputs = head_outputs(tensors)
    state = {
        ours: _weights(tensors, theirs, shape).permute(AXES[len(shape)]).contiguous()
        for ours, theirs, shape in _rows(outputs)
    }
    for at in CONVOLUTIONS:  # counts for an average that is not used here
        state[f"encoder.blocks.{at + 2}.num_batches_tracked"] = torch.tensor(0)
    if outputs == 2:
        for name in ("head.2.weight", "head.2.bias"):
            state[name] = state[name][1:] - state[name][:1]
    return state


def _rows(outputs: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield our name, their name and their shape of each tensor."""
    for block, at in enumerate(CONVOLUTIONS):
        before, after = CHANNELS[block : block + 2]
        side = 5 if block == 0 else 3
        yield f"encoder.blocks.{at}.weight", f"{2 * block}/kernel", (side, side, before, after)
        yield f"encoder.blocks.{at}.bias", f"{2 * block}/bias", (after,)
        for ours, theirs in NORM.items():
            yield f"encoder.blocks.{at + 2}.{ours}", f"{2 * block + 1}/{theirs}", (after,)
    yield "aggregator.project.weight", "12/v", (FEATURES, HIDDEN_ATTENTION)
    yield "aggregator.gate.weight", "12/u", (FEATURES, HIDDEN_ATTENTION)
    yield "aggregator.weigh.weight", "12/w", (HIDDEN_ATTENTION, 1)
    yield "head.1.weight", "13/kernel", (FEATURES, HIDDEN_HEAD)
    yield "head.1.bias", "13/bias", (HIDDEN_HEAD,)
    yield "head.2.weight", "14/kernel", (HIDDEN_HEAD, outputs)
    yield "head.2.bias", "14/bias", (outputs,)


def _weights(tensors: Tensors, name: str, shape: tuple[int, ...]) -> Tensor:
    found = tensors.get(_full_name(name))
    if found is None or found.shape != shape:
        there = "missing" if found is None else found.shape
        what = f"layer_with_weights-{name} of the checkpoint should be {shape}, and it is {there}"
        raise InputError(f"{what}: give one of the checkpoints released with SA-DMIL")
    weights = torch.tensor(found, dtype=torch.float32)
    if not weights.isfinite().all():
        raise InputError(f"layer_with_weights-{name} of the checkpoint holds NaN or infinite values: download it again")
    return weights


def _full_name(name: str) -> str:
    return f"layer_with_weights-{name}/.ATTRIBUTES/VARIABLE_VALUE"


# --- the checkpoint: an .index with names, types and shapes, and a .data file with the numbers

DATA_SUFFIX = ".data-00000-of-00001"
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # TensorFlow's number of a type → numpy's name
STRING = 7


class _UnreadableError(Exception):
    """What is wrong with a file, and what to do; `read_tensors` puts the name of the file before it."""

    def __init__(self, problem: str, advice: str = "download or copy it again") -> None:
        super().__init__(f"{problem}: {advice}")


class _IndexEntry(NamedTuple):
    name: str
    dtype: int
    shape: tuple[int, ...]
    offset: int
    size: int
    checksum: int


def data_path(index: Path) -> Path:
    """Return the file that holds the numbers of an index."""
    return index.with_name(f"{index.name.removesuffix('.index')}{DATA_SUFFIX}")


def read_tensors(index: Path) -> dict[str, np.ndarray]:
    """Read every numeric tensor by its name; texts, such as the graph of Python objects, are left out."""
    path = index
    try:
        entries = [entry for entry in _read_index(path.read_bytes()) if entry.dtype != STRING]
        path = data_path(index)
        data = path.read_bytes()
        if sum(entry.size for entry in entries) > len(data):
            raise _UnreadableError(f"is too short ({len(data)} bytes) for what the index says")
        return {entry.name: _read_array(entry, data) for entry in entries}
    except OSError as error:
        advice = f"a checkpoint is an .index and its {DATA_SUFFIX}, side by side"
        raise InputError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    except _UnreadableError as error:
        raise InputError(f"{path} {error}") from error


def _read_array(entry: _IndexEntry, data: bytes) -> np.ndarray:
    if entry.dtype not in DTYPES:
        raise _UnreadableError(f"holds {entry.name!r} of the unknown type {entry.dtype}", "save the weights as float32")
    content = data[entry.offset : entry.offset + entry.size]
    if len(content) < entry.size:
        raise _UnreadableError(f"ends before {entry.name!r} does")
    if masked_crc32c(content) != entry.checksum:
        raise _UnreadableError(f"is damaged (the checksum of {entry.name!r} is wrong)")
    try:
        return np.frombuffer(content, DTYPES[entry.dtype]).reshape(entry.shape)
    except (ValueError, OverflowError) as error:
        raise _UnreadableError(f"and its index disagree on the size of {entry.name!r}") from error


MAGIC = bytes.fromhex("57fb808b247547db")  # the last bytes of every table
FOOTER_SIZE = 48  # the handles of two blocks, then the magic
TRAILER_SIZE = 5  # behind every block: its kind of compression (one byte) and its checksum


def _read_index(table: bytes) -> list[_IndexEntry]:
    """Read the .index, a LevelDB table: blocks of keys and values in the order of the keys."""
    if not table.endswith(MAGIC) or len(table) < FOOTER_SIZE:
        raise _UnreadableError("is no index of a TensorFlow 2 checkpoint, or its end is missing")
    _, _, start, length, _ = _read_varints(table[-FOOTER_SIZE:], 0, 4)  # behind the metadata, which are empty
    pairs: dict[bytes, bytes] = {}
    end_of_last = 0
    for _, handle in _key_values(_read_block(table, start, length)):
        offset, size, _ = _read_varints(handle, 0, 2)
        if offset < end_of_last:  # else a small file could name the same block without end
            raise _UnreadableError("is damaged (blocks overlap)")
        end_of_last = offset + size
        pairs.update(_key_values(_read_block(table, offset, size)))
    header = _read_numbers(pairs.pop(b"", b""))
    if header.get(1) != 1:
        raise _UnreadableError(f"says its tensors lie in {header.get(1, 0)} files instead of one", "save it as one")
    if header.get(2, 0) != 0:
        raise _UnreadableError("is of a big-endian machine", "save the checkpoint on a little-endian one")
    return [_read_entry(name.decode(errors="replace"), message) for name, message in pairs.items()]


def _read_block(table: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + TRAILER_SIZE > len(table):
        raise _UnreadableError("is damaged (a block reaches beyond its end)")
    compression, checksum = struct.unpack_from("<BI", table, end)
    if masked_crc32c(table[offset : end + 1]) != checksum:
        raise _UnreadableError("is damaged (the checksum of a block is wrong)")
    if compression:
        raise _UnreadableError(f"is compressed (kind {compression})", "save the checkpoint again without compression")
    return table[offset:end]


def _key_values(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block; a key says how many bytes it shares with the one before."""
    end = len(block) - 4
    if end >= 0:
        end -= 4 * struct.unpack_from("<I", block, end)[0]  # restart points, for a search
    if end < 0:
        raise _UnreadableError("is damaged (a block is too short)")
    at, key = 0, b""
    while at < end:
        shared, own, length, at = _read_varints(block, at, 3)
        if shared > len(key) or at + own + length > end:
            raise _UnreadableError("is damaged (an entry reaches beyond its block)")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _read_entry(name: str, message: bytes) -> _IndexEntry:
    shape: list[int] = []
    for field, value in _read_fields(message):
        if field == 2:
            shape = [_read_numbers(length).get(1, 0) for number, length in _read_fields(value) if number == 2]
        elif field == 7:
            raise _UnreadableError(f"holds {name!r} in slices", "save the checkpoint without partitioned variables")
    numbers = _read_numbers(message)
    dtype, offset, size, checksum = (numbers.get(field, 0) for field in (1, 4, 5, 6))
    return _IndexEntry(name, dtype, tuple(shape), offset, size, checksum)


def _read_numbers(message: int | bytes) -> dict[int, int]:
    return {field: value for field, value in _read_fields(message) if isinstance(value, int)}


def _read_fields(message: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of each field of a protobuf message."""
    if isinstance(message, int):
        raise _UnreadableError("is damaged (a number stands for a message)")
    at = 0
    while at < len(message):
        key, at = _read_varints(message, at, 1)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _read_varints(message, at, 1)
            yield number, value
            continue
        size, at = _read_varints(message, at, 1) if kind == 2 else [{1: 8, 5: 4}.get(kind, len(message)), at]
        content, at = message[at : at + size], at + size
        if at > len(message):
            raise _UnreadableError("is damaged (a message is cut off or is none)")
        yield number, content if kind == 2 else int.from_bytes(content, "little")


def _read_varints(data: bytes, at: int, count: int) -> list[int]:
    """Return so many numbers, each of up to ten bytes with seven bits in each, and where they end."""
    numbers = []
    for _ in range(count):
        end = next((i for i, byte in enumerate(data[at : at + 10], start=at) if byte < 0x80), None)
        if end is None:
            raise _UnreadableError("is damaged (a number has no end)")
        numbers.append(sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(data[at : end + 1])))
        at = end + 1
    return [*numbers, at]


_CRC32C = list(range(256))
for _ in range(8):
    _CRC32C = [(crc >> 1) ^ (0x82F63B78 if crc & 1 else 0) for crc in _CRC32C]  # Castagnoli's polynomial, bits reversed


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C, rotated and offset as LevelDB stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
