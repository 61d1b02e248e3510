# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""TensorFlow checkpoints without TensorFlow: read exactly, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.core.errors import InputError
from scripts.weights.sa_dmil import data_path, masked_crc32c, read_tensors
from tests.shared_data import shared_data
from tests.weights.tf_checkpoint import entry, header, table, write_checkpoint

fuzzing = settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])

rng = np.random.default_rng(0)
TENSORS: dict[str, np.ndarray] = {
    "layer-0/kernel": rng.random((3, 2, 4), dtype=np.float32),
    "layer-0/bias": rng.random(4, dtype=np.float32),
    "layer-1/kernel": rng.random((2, 150)),  # a size and offsets of two bytes
    "layer-1/half": rng.random((2, 3)).astype(np.float16),
    "layer-10/counts": np.array([[-(2**40), 2**40]]),
    "layer-10/places": np.array([-1, 2**31 - 1], dtype=np.int32),
    "step": np.array(4800),
    "empty": np.zeros((0, 3), np.float32),
}


ENTRY = entry(1, (4, 2), 0, 32, masked_crc32c(bytes(32)))


def same(read: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return read.keys() == wanted.keys() and all(
        read[name].dtype == array.dtype and read[name].shape == array.shape and (read[name] == array).all()
        for name, array in wanted.items()
    )


def refusal(index: Path) -> str:
    with pytest.raises(InputError, match=r"\A[^\n]+\Z") as error:
        read_tensors(index)
    return str(error.value)


def outcome(index: Path) -> dict[str, np.ndarray] | None:
    """What is read, or nothing where it is refused in one line; any other error is passed on."""
    try:
        return read_tensors(index)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    return None


# --- what is read


@pytest.mark.parametrize(
    ("content", "checksum"),
    [  # RFC 3720, B.4, and the check value of CRC-32C
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_the_checksum_is_crc_32c(content: bytes, checksum: int) -> None:
    turned = int(f"{checksum:032b}"[-15:] + f"{checksum:032b}"[:-15], 2)  # the last 15 bits come first
    assert masked_crc32c(content) == (turned + 0xA282EAD8) % 2**32


def test_tensors_come_back_with_their_types_and_shapes(tmp_path: Path) -> None:
    assert same(read_tensors(write_checkpoint(tmp_path, TENSORS)), TENSORS)


def test_what_tensorflow_wrote_is_read() -> None:
    """Its own checksums vouch for the content: each is compared while reading."""
    tensors = read_tensors(shared_data("sa_mil/checkpoints/baseline.ckpt.index"))
    model = [name for name in tensors if name.startswith("layer_with_weights-") and "OPTIMIZER_SLOT" not in name]
    assert len(model) == 43
    assert tensors["optimizer/global_step/.ATTRIBUTES/VARIABLE_VALUE"] == 4800
    assert tensors["layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE"].shape == (5, 5, 3, 16)


# --- what is refused


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    index = write_checkpoint(tmp_path, TENSORS)
    data_path(index).unlink()
    message = refusal(index)
    assert message.startswith(f"{data_path(index)} cannot be read (No such file or directory): ")
    assert "side by side" in message
    assert refusal(tmp_path / "other.index").startswith(f"{tmp_path / 'other.index'} cannot be read")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 200])
def test_another_file_is_told(tmp_path: Path, content: bytes) -> None:
    index = write_checkpoint(tmp_path, TENSORS)
    index.write_bytes(content)
    assert refusal(index) == (
        f"{index} is no index of a TensorFlow 2 checkpoint, or its end is missing: download or copy it again"
    )


def test_data_that_end_too_early_are_told(tmp_path: Path) -> None:
    index = write_checkpoint(tmp_path, TENSORS)
    data = data_path(index)
    data.write_bytes(data.read_bytes()[:-1])
    assert refusal(index) == f"{data} ends before 'step' does: download or copy it again"
    data.write_bytes(b"")
    assert refusal(index).startswith(f"{data} is too short (0 bytes)")


def test_a_changed_number_is_told(tmp_path: Path) -> None:
    index = write_checkpoint(tmp_path, TENSORS)
    data = data_path(index)
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert refusal(index) == f"{data} is damaged (the checksum of 'step' is wrong): download or copy it again"


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ({b"": header(shards=2)}, "says that its tensors lie in 2 files instead of one: save"),
        ({b"": header(big_endian=True)}, "is of a big-endian machine: save"),
        ({}, "says that its tensors lie in 0 files"),
        ({b"": header(), b"x": entry(8, (1,), 0, 8, 0)}, "holds 'x' of the unknown type 8: save"),
        ({b"": header(), b"x": entry(1, (3,), 0, 8, masked_crc32c(bytes(8)))}, "disagree on the size of 'x'"),
        ({b"": header(), b"x": entry(1, (2**63, 0), 0, 0, masked_crc32c(b""))}, "disagree on the size of 'x'"),
        ({b"": header(), b"x": entry(1, (2,), 2**60, 8, masked_crc32c(b""))}, "ends before 'x' does"),
        ({b"": header(), b"x": entry(1, (2**58,), 0, 2**60, 0)}, "is too short (8 bytes)"),
        ({b"": header(), b"x": entry(1, (2,), 0, 8, 0) + b"\x3a\x00"}, "holds 'x' in slices: save"),
        ({b"": header(), b"two\nlines": entry(8, (1,), 0, 8, 0)}, r"holds 'two\nlines' of the unknown type"),
        ({b"": header(), b"x": b""}, "holds 'x' of the unknown type 0"),
        ({b"": header(), b"x": b"\x12\x02\x10\x00"}, "is damaged (a shape is no shape)"),
        ({b"": header(), b"x": b"\x12\x04\x12\x02\x0a\x00"}, "is damaged (a shape is no shape)"),
        ({b"": header(), b"x": b"\x12\x02\x12\x05"}, "is damaged (a message is cut off"),
        ({b"": header(), b"x": b"\x0b"}, "is damaged (a message is cut off"),
        ({b"": header(), b"x": b"\xff" * 20}, "is damaged (a number has no end)"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path: Path, pairs: dict[bytes, bytes], told: str) -> None:
    index = tmp_path / "x.index"
    index.write_bytes(table(pairs))
    data_path(index).write_bytes(bytes(8))
    message = refusal(index)
    assert told in message
    assert message.startswith(str(tmp_path / "x."))


def test_compression_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(table({b"": header()}, kind=1))
    assert refusal(tmp_path / "x.index").endswith(
        "is compressed (kind 1): save the checkpoint again without compression"
    )


def test_a_block_named_twice_is_told(tmp_path: Path) -> None:
    """Else a small file could be read for ever."""
    (tmp_path / "x.index").write_bytes(table({b"": header()}, named=2))
    assert "is damaged (blocks overlap)" in refusal(tmp_path / "x.index")


# --- any damage


def damaged(draw: Callable[..., Any], content: bytes) -> bytes:
    """Some bits turned over, and perhaps the end cut off or something put in."""
    changed = bytearray(content)
    for bit in draw(st.lists(st.integers(0, 8 * len(content) - 1), max_size=3)) if content else []:
        changed[bit // 8] ^= 1 << bit % 8
    at = draw(st.one_of(st.none(), st.integers(0, len(content))))
    if at is not None:
        changed[at:] = draw(st.one_of(st.just(b""), st.binary(max_size=12))) + changed[at + draw(st.integers(0, 30)) :]
    return bytes(changed)


@fuzzing
@given(data=st.data(), of_index=st.booleans())
def test_a_damaged_file_is_refused_or_read_right(tmp_path: Path, data: st.DataObject, of_index: bool) -> None:
    index = write_checkpoint(tmp_path, TENSORS)
    path = index if of_index else data_path(index)
    path.write_bytes(damaged(data.draw, path.read_bytes()))
    read = outcome(index)
    assert read is None or same(read, TENSORS)


@fuzzing
@given(data=st.data())
def test_damage_under_a_right_checksum_is_no_other_error(tmp_path: Path, data: st.DataObject) -> None:
    index = write_checkpoint(tmp_path, TENSORS, change_block=lambda block: damaged(data.draw, block))
    outcome(index)


@fuzzing
@given(data=st.data())
def test_damaged_messages_are_no_other_error(tmp_path: Path, data: st.DataObject) -> None:
    messages = st.binary(max_size=40)
    pairs = {b"": data.draw(st.just(header()) | messages), b"x": data.draw(messages), b"y": damaged(data.draw, ENTRY)}
    index = tmp_path / "x.index"
    index.write_bytes(table(pairs))
    data_path(index).write_bytes(bytes(32))
    outcome(index)
