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
"""Tensors of a TensorFlow 2 checkpoint, read without TensorFlow.

`NAME.index` is an uncompressed LevelDB table: the name of a tensor → its type, shape, place and checksum.
`NAME.data-00000-of-00001` holds the numbers themselves, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.errors import InputError

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
