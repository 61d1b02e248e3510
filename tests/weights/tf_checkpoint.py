# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""TensorFlow 2 checkpoints that the tests write themselves."""

import itertools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from scripts.weights.sa_dmil import masked_crc32c

TYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "float16": 19}
STRING = 7
ENTRIES_PER_BLOCK = 5

Change = Callable[[bytes], bytes]


def sa_dmil_tensors(outputs: int = 1) -> dict[str, np.ndarray]:
    """Random numbers in the place of SA-DMIL's tensors, whose names go without their long ends here."""
    rng, channels = np.random.default_rng(0), (3, 16, 32, 32, 32, 32, 32)
    shapes: dict[str, tuple[int, ...]] = {
        "12/v": (1152, 64), "12/u": (1152, 64), "12/w": (64, 1), "13/kernel": (1152, 128), "13/bias": (128,),
        "14/kernel": (128, outputs), "14/bias": (outputs,),
    }  # fmt: skip
    for block, (before, after) in enumerate(itertools.pairwise(channels)):
        shapes[f"{2 * block}/kernel"] = (*((5, 5) if block == 0 else (3, 3)), before, after)
        shapes[f"{2 * block}/bias"] = (after,)
        shapes |= {f"{2 * block + 1}/{name}": (after,) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    return {name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}


def full_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"layer_with_weights-{name}/.ATTRIBUTES/VARIABLE_VALUE": array for name, array in tensors.items()}


def write_checkpoint(
    folder: Path, tensors: Mapping[str, np.ndarray], name: str = "weights.ckpt", change_block: Change = bytes
) -> Path:
    """Write NAME.index and NAME.data-00000-of-00001, a text among the tensors as TensorFlow does; returns the index.

    Args:
        change_block: damages the content of every block before its checksum is taken.
    """
    data = b"\x03\x3f\x00\x00\x00abc"  # a text: its length, a checksum, its letters
    pairs = {b"": header(), b"_CHECKPOINTABLE_OBJECT_GRAPH": entry(STRING, (), 0, len(data), 0)}
    for key, array in sorted(tensors.items()):
        content = np.ascontiguousarray(array).tobytes()
        pairs[key.encode()] = entry(
            TYPES[array.dtype.name], array.shape, len(data), len(content), masked_crc32c(content)
        )
        data += content
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / f"{name}.index"
    index.write_bytes(table(pairs, change_block))
    (folder / f"{name}.data-00000-of-00001").write_bytes(data)
    return index


def header(shards: int = 1, big_endian: bool = False) -> bytes:
    return _field(1, shards) + (_field(2, 1) if big_endian else b"") + _field(3, _field(1, 1))


def entry(dtype: int, shape: tuple[int, ...], offset: int, size: int, checksum: int) -> bytes:
    dimensions = b"".join(_field(2, _field(1, length)) for length in shape)
    place = (_field(4, offset) if offset else b"") + _field(5, size)  # a zero is left out, as protobuf does
    return _field(1, dtype) + _field(2, dimensions) + place + _varint(6 << 3 | 5) + struct.pack("<I", checksum)


def table(pairs: Mapping[bytes, bytes], change_block: Change = bytes, kind: int = 0, named: int = 1) -> bytes:
    """A LevelDB table; `kind` of compression stands behind every block, and each block is `named` so many times."""
    written = b""

    def add(content: bytes) -> bytes:
        """Write a block with its trailer; returns where it lies."""
        nonlocal written
        place = _varint(len(written)) + _varint(len(content))
        sealed = content + bytes([kind])
        written += sealed + struct.pack("<I", masked_crc32c(sealed))
        return place

    items = sorted(pairs.items())
    blocks = [dict(items[at : at + ENTRIES_PER_BLOCK]) for at in range(0, len(items), ENTRIES_PER_BLOCK)]
    places = {}
    for block in blocks:
        place = add(change_block(_block(block)))
        places.update({max(block) + bytes(times): place for times in range(named)})
    metadata = add(_block({}))
    footer = metadata + add(change_block(_block(places)))
    return written + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def _block(pairs: Mapping[bytes, bytes]) -> bytes:
    content, before = b"", b""
    for key, value in sorted(pairs.items()):
        shared = 0
        while shared < len(before) and key.startswith(before[: shared + 1]):
            shared += 1
        content += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        before = key
    return content + struct.pack("<2I", 0, 1)  # one key is written out, the first


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])
