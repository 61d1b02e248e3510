# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The released weights of SA-DMIL (arXiv 2307.09457) → the network of configs/ct."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.core.errors import InputError

RELEASED = {  # how the sha256 of the .data file begins
    "baseline": "fc734d204520a3f38b34131edad05c4e742544c3f85205e4cec455d10bfe823d",
    "att_0_5": "bc43e206fdeaead16290d822e33ff07cf5fdccb2dea06aa313592d5b26ef519a",
    "att_0_9": "57ae38f0",  # its beginning is all that is known
}
CHANNELS = (3, 16, 32, 32, 32, 32, 32)  # before the first block and behind each of the six
CONVOLUTIONS = (0, 4, 9, 13, 17, 22)  # their places in SliceCNN.blocks
FEATURES = 6 * 6 * 32  # of a slice, in the order row, column, channel on both sides
HIDDEN_ATTENTION = 64
HIDDEN_HEAD = 128
NETWORK = {"network_def#slots": 57}  # every scan was filled up to so many slices

Tensors = Mapping[str, np.ndarray]


def released_as(sha256: str) -> str | None:
    """The name of a released checkpoint, by the sha256 of its .data file."""
    return next((name for name, beginning in RELEASED.items() if sha256.startswith(beginning)), None)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def classes(tensors: Tensors) -> int:
    """Outputs of the head: one logit, or one per class."""
    return 2 if _shape(tensors, "14/bias") == (2,) else 1


def state_dict(tensors: Tensors, one_logit: bool = True) -> dict[str, Tensor]:
    """What the network of configs/ct/train.json loads.

    Where the head has two outputs, the biases of the two differ in sign alone, as training by a softmax leaves them.
    The sigmoid of their difference is that softmax, so with `one_logit` the head becomes class 1 - class 0.
    """
    state = {}
    for block, at in enumerate(CONVOLUTIONS):
        before, after = CHANNELS[block : block + 2]
        side = 5 if block == 0 else 3
        convolution, norm = f"encoder.blocks.{at}", f"encoder.blocks.{at + 2}"
        kernel = _checked(tensors, f"{2 * block}/kernel", (side, side, before, after))  # row, column, in, out
        state[f"{convolution}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        state[f"{convolution}.bias"] = _checked(tensors, f"{2 * block}/bias", (after,))
        for ours, theirs in (
            ("weight", "gamma"),
            ("bias", "beta"),
            ("running_mean", "moving_mean"),
            ("running_var", "moving_variance"),
        ):
            state[f"{norm}.{ours}"] = _checked(tensors, f"{2 * block + 1}/{theirs}", (after,))
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)  # counts for an average that is not used here
    state["aggregator.project.weight"] = _checked(tensors, "12/v", (FEATURES, HIDDEN_ATTENTION)).t().contiguous()
    state["aggregator.gate.weight"] = _checked(tensors, "12/u", (FEATURES, HIDDEN_ATTENTION)).t().contiguous()
    state["aggregator.weigh.weight"] = _checked(tensors, "12/w", (HIDDEN_ATTENTION, 1)).t().contiguous()
    state["head.1.weight"] = _checked(tensors, "13/kernel", (FEATURES, HIDDEN_HEAD)).t().contiguous()
    state["head.1.bias"] = _checked(tensors, "13/bias", (HIDDEN_HEAD,))
    outputs = classes(tensors)
    weight = _checked(tensors, "14/kernel", (HIDDEN_HEAD, outputs)).t().contiguous()
    bias = _checked(tensors, "14/bias", (outputs,))
    if outputs == 2 and one_logit:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    state["head.2.weight"], state["head.2.bias"] = weight, bias
    return state


def _checked(tensors: Tensors, name: str, shape: tuple[int, ...]) -> Tensor:
    found = _shape(tensors, name)
    if found != shape:
        there = "none is there" if found is None else f"{found} is there"
        raise InputError(
            f"layer_with_weights-{name} of the checkpoint should be {shape}, and {there}: "
            "give one of the checkpoints released with SA-DMIL"
        )
    weights = torch.tensor(tensors[_full(name)], dtype=torch.float32)
    if not weights.isfinite().all():
        raise InputError(f"layer_with_weights-{name} of the checkpoint holds NaN or infinite values: download it again")
    return weights


def _shape(tensors: Tensors, name: str) -> tuple[int, ...] | None:
    return tensors[_full(name)].shape if _full(name) in tensors else None


def _full(name: str) -> str:
    return f"layer_with_weights-{name}/.ATTRIBUTES/VARIABLE_VALUE"


MAGIC = bytes.fromhex("57fb808b247547db")  # the last bytes of every LevelDB table
DATA_SUFFIX = ".data-00000-of-00001"
FOOTER_SIZE = 48  # where two blocks lie, then the magic
TRAILER_SIZE = 5  # behind every block: its kind of compression (one byte) and its checksum
UNCOMPRESSED = 0
STRING = 7
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # TensorFlow's number of a type → numpy's name of it


class _UnreadableError(Exception):
    """What is wrong with a file, and what to do; whoever knows the file makes an InputError of it."""

    def __init__(self, what: str, advice: str = "download or copy it again") -> None:
        self.what = what
        self.advice = advice


@dataclass(frozen=True)
class _Entry:
    """A tensor as the index describes it."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    offset: int
    size: int
    checksum: int


def data_path(index: Path) -> Path:
    """The file that holds the numbers of an index."""
    return index.with_name(f"{index.name.removesuffix('.index')}{DATA_SUFFIX}")


def read_tensors(index: Path) -> dict[str, np.ndarray]:
    """Every tensor of numbers by its name; texts, such as the graph of Python objects, are left out."""
    with _told_of(index):
        entries = _entries(_content(index))
    data = data_path(index)
    with _told_of(data):
        return _tensors(entries, _content(data))


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except _UnreadableError as error:
        raise InputError(f"{path} {error.what}: {error.advice}") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _UnreadableError(
            f"cannot be read ({error.strerror})", "a checkpoint is an .index and its .data-00000-of-00001, side by side"
        ) from error


# --- the table: blocks of keys and values in the order of the keys


def _entries(table: bytes) -> list[_Entry]:
    if not table.endswith(MAGIC) or len(table) < FOOTER_SIZE:
        raise _UnreadableError("is no index of a TensorFlow 2 checkpoint, or its end is missing")
    pairs: dict[bytes, bytes] = {}
    for place in _index_block(table):
        pairs.update(_pairs(_block(table, *_place(place))))
    _check_header(pairs.pop(b"", b""))
    entries = [_entry(name, value) for name, value in pairs.items()]
    return [entry for entry in entries if entry.dtype != STRING]


def _index_block(table: bytes) -> list[bytes]:
    """Where the blocks of entries lie, one behind the other."""
    footer = table[-FOOTER_SIZE:]
    _, at = _varint(footer, 0)  # first the place of the block of metadata, which is empty
    _, at = _varint(footer, at)
    places = [value for _, value in _pairs(_block(table, *_place(footer[at:])))]
    end = 0
    for offset, size in map(_place, places):
        if offset < end:  # else a small file could name the same block without end
            raise _UnreadableError("is damaged (blocks overlap)")
        end = offset + size
    return places


def _place(value: bytes) -> tuple[int, int]:
    """Offset and size of a block."""
    offset, at = _varint(value, 0)
    size, _ = _varint(value, at)
    return offset, size


def _block(table: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + TRAILER_SIZE > len(table):
        raise _UnreadableError("is damaged (a block reaches beyond its end)")
    kind, checksum = struct.unpack_from("<BI", table, end)
    if masked_crc32c(table[offset : end + 1]) != checksum:
        raise _UnreadableError("is damaged (the checksum of a block is wrong)")
    if kind != UNCOMPRESSED:
        raise _UnreadableError(f"is compressed (kind {kind})", "save the checkpoint again without compression")
    return table[offset:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; a key says how many bytes it shares with the one before."""
    end = len(block) - 4
    if end >= 0:
        end -= 4 * struct.unpack_from("<I", block, end)[0]  # places to begin at, for a search
    if end < 0:
        raise _UnreadableError("is damaged (a block is too short)")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise _UnreadableError("is damaged (an entry reaches beyond its block)")
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + length]
        at += length


# --- the messages: fields by their number


def _check_header(message: bytes) -> None:
    header = dict(_fields(message))
    if header.get(1) != 1:
        raise _UnreadableError(
            f"says that its tensors lie in {header.get(1, 0)!r} files, and one is wanted",
            "save the checkpoint as one file",
        )
    if header.get(2, 0) != 0:
        raise _UnreadableError("is of a big-endian machine", "save the checkpoint on a little-endian one")


def _entry(name: bytes, message: bytes) -> _Entry:
    numbers: dict[int, int] = {}
    shape: list[int] = []
    for field, value in _fields(message):
        if isinstance(value, int):
            numbers[field] = value
        elif field == 2:
            shape = [_size(dimension) for number, dimension in _fields(value) if number == 2]
        elif field == 7:
            raise _UnreadableError(
                f"holds {_text(name)!r} in slices", "save the checkpoint without partitioned variables"
            )
    return _Entry(_text(name), numbers.get(1, 0), tuple(shape), numbers.get(4, 0), numbers.get(5, 0), numbers.get(6, 0))


def _size(dimension: int | bytes) -> int:
    size = dict(_fields(dimension)).get(1, 0) if isinstance(dimension, bytes) else None
    if not isinstance(size, int):
        raise _UnreadableError("is damaged (a shape is no shape)")
    return size


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(message, at)
        else:
            size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, len(message)), at)
            value, at = message[at : at + size], at + size
            if at > len(message):
                raise _UnreadableError("is damaged (a message is cut off or is none)")
            if kind != 2:
                value = int.from_bytes(value, "little")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits in each, and where it ends."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise _UnreadableError("is damaged (a number has no end)")


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


# --- the data


def _tensors(entries: list[_Entry], data: bytes) -> dict[str, np.ndarray]:
    if sum(entry.size for entry in entries) > len(data):
        raise _UnreadableError(f"is too short ({len(data)} bytes) for what the index says")
    return {entry.name: _tensor(entry, data) for entry in entries}


def _tensor(entry: _Entry, data: bytes) -> np.ndarray:
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


# --- checksums


def _crc32c_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, bits reversed
    return byte


_CRC32C = [_crc32c_of_byte(byte) for byte in range(256)]


def masked_crc32c(data: bytes) -> int:
    """CRC-32C, turned and moved as LevelDB stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
