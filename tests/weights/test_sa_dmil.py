# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""SA-DMIL's checkpoints: read exactly or refused in one line, every tensor in its place, the original's answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from scripts.core.errors import InputError
from scripts.weights import sa_dmil
from scripts.weights.sa_dmil import data_path, masked_crc32c, read_tensors
from tests.shared_data import ROOT, shared_data
from tests.weights.configured import network
from tests.weights.tf_checkpoint import entry, full_names, header, sa_dmil_tensors, table, write_checkpoint

SLOTS, SLICES = 57, 24  # of the fixed input; the rest is padding


TENSORS_OF_ONE, TENSORS_OF_TWO = sa_dmil_tensors(outputs=1), sa_dmil_tensors(outputs=2)


@pytest.mark.parametrize("tensors", [TENSORS_OF_ONE, TENSORS_OF_TWO])
def test_attention_and_head_compute_the_formula_of_the_original(tensors: dict[str, np.ndarray]) -> None:
    """A softmax of two outputs is the sigmoid of the one logit made of them."""
    made = network("ct", sa_dmil.state_dict(full_names(tensors)))
    h = np.random.default_rng(3).standard_normal((5, 1152)) / 100
    f = (np.tanh(h @ tensors["12/v"]) / (1 + np.exp(-h @ tensors["12/u"]))) @ tensors["12/w"]
    a = np.exp(f) / np.exp(f).sum()
    hidden = (a * h).sum(axis=0) @ tensors["13/kernel"] + tensors["13/bias"]
    outputs = hidden @ tensors["14/kernel"] + tensors["14/bias"]
    assert sa_dmil.head_outputs(full_names(tensors)) == len(outputs)
    with torch.no_grad():
        x, mask = torch.from_numpy(h.T).float()[None], torch.ones(1, 1, 5)
        pooled = made.aggregator(x, mask, made.graph(None, mask))
        logit = made.head(pooled.embedding)[0]
    np.testing.assert_allclose(pooled.attention[0, 0], a[:, 0], rtol=1e-4)
    wanted = outputs if len(outputs) == 1 else np.log(np.exp(outputs[1:]) / np.exp(outputs[:1]))
    np.testing.assert_allclose(logit, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("4/kernel", None, r"-4/kernel .* should be \(3, 3, 32, 32\), and it is missing: give one"),
        ("0/kernel", (16, 3, 5, 5), r"-0/kernel .* should be \(5, 5, 3, 16\), and it is \(16, 3, 5, 5\): give one"),
        ("14/bias", (3,), r"-14/bias .* should be \(1,\), and it is \(3,\)"),
        ("14/kernel", (128, 2), r"-14/kernel .* should be \(128, 1\), and it is \(128, 2\)"),
        ("13/bias", np.nan, "-13/bias .* holds NaN"),
    ],
)
def test_other_tensors_are_refused(name: str, shape: Any, message: str) -> None:
    other = {**TENSORS_OF_ONE, name: np.full(128, np.nan) if shape is np.nan else np.zeros(shape or (), np.float32)}
    if shape is None:
        del other[name]
    with pytest.raises(InputError, match=message):
        sa_dmil.state_dict(full_names(other))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "att_0_5"])
def test_the_released_weights_answer_as_the_original_does(name: str) -> None:
    """24 slices through the network of configs/released.json, which adds the padding."""
    tensors = read_tensors(shared_data(f"sa_mil/checkpoints/{name}.ckpt.index"))
    expected = dict(np.load(shared_data(f"sa_mil/expected/expected_{name}.npz")))
    low = np.random.default_rng(20231).random((SLICES, 16, 16, 3), dtype=np.float32)
    slices = np.kron(low, np.ones((1, 32, 32, 1), np.float32))  # slice, row, column, window
    state, seen = sa_dmil.state_dict(tensors), dict[str, Tensor]()
    released = network("ct", state, ROOT / "configs" / "ct" / "released.json")
    released.encoder.register_forward_hook(lambda _, __, out: seen.update(features=out[0].t()))
    released.aggregator.register_forward_hook(lambda _, __, out: seen.update(z=out.embedding, a=out.attention[0, 0]))
    with torch.no_grad():
        logit = released(torch.from_numpy(slices).permute(3, 1, 2, 0)[None])[0]
    assert seen["features"].shape[0] == SLOTS
    wanted = expected["features"]  # of the first 25 slots, one of them padding
    np.testing.assert_allclose(seen["features"][: len(wanted)], wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(seen["a"], expected["attention"], rtol=0, atol=1e-6)
    assert seen["a"][SLICES:].sum() > 0.1  # padding takes part
    np.testing.assert_allclose(seen["z"][0], expected["z"], rtol=0, atol=1e-5)
    probability = expected["output"][0]
    if name == "att_0_5":  # two logits
        probability = np.exp(expected["output"][1]) / np.exp(expected["output"]).sum()
    np.testing.assert_allclose(torch.sigmoid(logit[0]), probability, rtol=0, atol=1e-5)


TENSORS: dict[str, np.ndarray] = {
    "layer-0/kernel": np.random.default_rng(0).random((3, 2, 4), dtype=np.float32),
    "layer-0/bias": np.arange(4, dtype=np.float32),
    "layer-1/kernel": np.random.default_rng(0).random((2, 150)),  # a size and offsets of two bytes
    "layer-1/half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "layer-10/counts": np.array([[-(2**40), 2**40]]),
    "layer-10/places": np.array([-1, 2**31 - 1], dtype=np.int32),
    "empty": np.zeros((0, 3), np.float32),
    "step": np.array(4800),
}
INDEX, DATA = "weights.ckpt.index", "weights.ckpt.data-00000-of-00001"
ENTRY = entry(1, (4, 2), 0, 32, masked_crc32c(bytes(32)))


def read_or_refused(index: Path) -> dict[str, np.ndarray] | str:
    """What is read, or the one line by which it is refused; any other error is passed on."""
    try:
        return read_tensors(index)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    return message


def assert_read(read: dict[str, np.ndarray] | str) -> None:
    assert isinstance(read, dict)
    assert read.keys() == TENSORS.keys()
    for name, wanted in TENSORS.items():
        np.testing.assert_array_equal(read[name], wanted, strict=True)


@pytest.mark.parametrize(  # RFC 3720, B.4, and the check value of CRC-32C
    ("content", "checksum"), [(bytes(range(32)), 0x46DD794E), (b"123456789", 0xE3069283), (b"", 0)]
)
def test_the_checksum_is_crc_32c(content: bytes, checksum: int) -> None:
    turned = int(f"{checksum:032b}"[-15:] + f"{checksum:032b}"[:-15], 2)  # the last 15 bits come first
    assert masked_crc32c(content) == (turned + 0xA282EAD8) % 2**32


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (DATA, None, "00001 cannot be read (No such file or directory): a checkpoint is an .index and its .data"),
        (DATA, lambda content: content[:-1], "00001 ends before 'step' does: download or copy it again"),
        (DATA, lambda content: b"", "00001 is too short (0 bytes)"),
        (DATA, lambda content: content[:-1] + b"x", "(the checksum of 'step' is wrong): download"),
        (INDEX, None, ".index cannot be read (No such file or directory)"),
        (INDEX, b"x" * 200, ".index is no index of a TensorFlow 2 checkpoint"),
        (INDEX, table({b"": header(shards=2)}), "lie in 2 files instead of one: save"),
        (INDEX, table({b"": header(big_endian=True)}), "is of a big-endian machine: save"),
        (INDEX, table({b"": header()}, kind=1), ".index is compressed (kind 1): save the checkpoint again"),
        (
            INDEX,
            table({b"": header()}, named=2),
            ".index is damaged (blocks overlap)",
        ),  # else it could be read for ever
        *[
            (INDEX, table({b"": header(), b"two\nlines": message}), problem)
            for message, problem in [
                (entry(8, (1,), 0, 8, 0), r"00001 holds 'two\nlines' of the unknown type 8: save"),
                (entry(1, (2**63, 0), 0, 0, masked_crc32c(b"")), "00001 and its index disagree on the size of"),
                (entry(1, (2**58,), 0, 2**60, 0), "00001 is too short ("),
                (entry(1, (2,), 0, 8, 0) + b"\x3a\x00", "in slices: save"),
                (b"\x12\x02\x10\x00", ".index is damaged (a number stands for a message)"),
                (b"\xff" * 20, ".index is damaged (a number has no end)"),
            ]
        ],
    ],
    ids=range(16),
)
def test_what_is_missing_or_damaged_or_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    index, path = write_checkpoint(tmp_path, TENSORS), tmp_path / name
    assert_read(read_tensors(index))
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    refusal = str(read_or_refused(index))
    assert refusal.startswith(str(tmp_path / "weights.ckpt."))
    assert message in refusal


fuzzing = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


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
    read = read_or_refused(index)
    if not isinstance(read, str):
        assert_read(read)


@fuzzing
@given(data=st.data())
def test_damage_under_right_checksums_is_no_other_error(tmp_path: Path, data: st.DataObject) -> None:
    """Of blocks, and of the messages in them."""
    read_or_refused(write_checkpoint(tmp_path, TENSORS, change_block=lambda block: damaged(data.draw, block)))
    messages = st.binary(max_size=40)
    pairs = {b"": data.draw(st.just(header()) | messages), b"x": data.draw(messages), b"y": damaged(data.draw, ENTRY)}
    index = tmp_path / "x.index"
    index.write_bytes(table(pairs))
    data_path(index).write_bytes(bytes(32))
    read_or_refused(index)
