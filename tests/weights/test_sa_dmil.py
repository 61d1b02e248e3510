# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""SA-DMIL's released weights: every tensor at its place, and the answers of the original network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from scripts.core.errors import InputError
from scripts.networks import MILNetwork
from scripts.weights import sa_dmil
from scripts.weights.sa_dmil import read_tensors
from tests.shared_data import ROOT, shared_data

LAST = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOTS = 57
SLICES = 24  # of the fixed input; the rest is padding


def network(*overrides: str, outputs: int = 1) -> MILNetwork:
    """The network of configs/ct as it is."""
    config = ConfigParser()
    config.read_config([ROOT / "configs" / "ct" / f"{name}.json" for name in ("inference", *overrides)])
    made = config.get_parsed_content("network_def")
    assert isinstance(made, MILNetwork)
    if outputs == 2:
        assert isinstance(made.head, torch.nn.Sequential)
        made.head[2] = torch.nn.Linear(128, 2)
    return made.eval()


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """Random numbers in the place of a training's."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "12/v": (1152, 64), "12/u": (1152, 64), "12/w": (64, 1),
        "13/kernel": (1152, 128), "13/bias": (128,), "14/kernel": (128, 1), "14/bias": (1,),
    }  # fmt: skip
    channels = (3, 16, 32, 32, 32, 32, 32)
    for block in range(6):
        after = channels[block + 1]
        shapes[f"{2 * block}/kernel"] = (*((5, 5) if block == 0 else (3, 3)), channels[block], after)
        shapes[f"{2 * block}/bias"] = (after,)
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"{2 * block + 1}/{name}"] = (after,)
    return {f"layer_with_weights-{name}{LAST}": rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}


def with_two_outputs(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    kernel, bias = rng.standard_normal((128, 2), np.float32), rng.standard_normal(2, np.float32)
    return {
        **tensors, f"layer_with_weights-14/kernel{LAST}": kernel, f"layer_with_weights-14/bias{LAST}": bias,
    }  # fmt: skip


# --- every tensor at its place


def test_the_network_of_the_configs_takes_all_of_it(tensors: dict[str, np.ndarray]) -> None:
    loaded, state = network(), sa_dmil.state_dict(tensors)
    loaded.load_state_dict(state)  # strict: nothing is missing, nothing is left
    counted = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
    assert counted == 338_785  # of the original, the moving statistics included


def test_a_block_computes_the_formula_of_the_original(tensors: dict[str, np.ndarray]) -> None:
    """Convolution in rows, columns, channels; ReLU; (x - mean) / sqrt(variance + 0.001) · gamma + beta; pooling."""
    loaded = network()
    loaded.load_state_dict(sa_dmil.state_dict(tensors))
    blocks = loaded.encoder.blocks
    assert isinstance(blocks, torch.nn.Sequential)
    rng = np.random.default_rng(2)
    for block, (start, padding) in enumerate(((0, 2), (4, 0), (9, 0), (13, 0), (17, 0), (22, 0))):
        get = {name.split("/")[1]: value for name, value in tensors.items() if f"-{2 * block}/" in name}
        norm = {name.split("/")[1]: value for name, value in tensors.items() if f"-{2 * block + 1}/" in name}
        kernel = get["kernel"]
        side = kernel.shape[0]
        image = rng.standard_normal((7, 7, kernel.shape[2]))  # row, column, channel
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        places = range(len(padded) - side + 1)
        maps = np.array([
            [np.tensordot(padded[r : r + side, c : c + side], kernel, 3) + get["bias"] for c in places] for r in places
        ])  # fmt: skip
        maps = (np.maximum(maps, 0) - norm["moving_mean"]) / np.sqrt(norm["moving_variance"] + 0.001)
        maps = maps * norm["gamma"] + norm["beta"]
        half = len(maps) // 2
        wanted = maps[: 2 * half, : 2 * half].reshape(half, 2, half, 2, -1).max(axis=(1, 3))
        with torch.no_grad():
            x = torch.from_numpy(image).float().permute(2, 0, 1)[None]
            found = blocks[start : start + 4](x)[0].permute(1, 2, 0)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_attention_and_head_compute_the_formula_of_the_original(tensors: dict[str, np.ndarray]) -> None:
    loaded = network()
    loaded.load_state_dict(sa_dmil.state_dict(tensors))
    get = {name.removeprefix("layer_with_weights-").removesuffix(LAST): value for name, value in tensors.items()}
    h = np.random.default_rng(3).standard_normal((5, 1152)) / 100
    f = (np.tanh(h @ get["12/v"]) / (1 + np.exp(-h @ get["12/u"]))) @ get["12/w"]
    a = np.exp(f) / np.exp(f).sum()
    logit = ((a * h).sum(axis=0) @ get["13/kernel"] + get["13/bias"]) @ get["14/kernel"] + get["14/bias"]
    with torch.no_grad():
        x, mask = torch.from_numpy(h.T).float()[None], torch.ones(1, 1, 5)
        pooled = loaded.aggregator(x, mask, loaded.graph(None, mask))
        np.testing.assert_allclose(pooled.attention[0, 0], a[:, 0], rtol=1e-4)
        np.testing.assert_allclose(loaded.head(pooled.embedding)[0], logit, rtol=1e-4)


def test_one_logit_says_what_two_say(tensors: dict[str, np.ndarray]) -> None:
    two = with_two_outputs(tensors)
    assert (sa_dmil.head_outputs(tensors), sa_dmil.head_outputs(two)) == (1, 2)
    folded, whole = network(), network(outputs=2)
    folded.load_state_dict(sa_dmil.state_dict(two))
    whole.load_state_dict(sa_dmil.state_dict(two, one_logit=False))
    z = torch.randn(4, 1152, generator=torch.Generator().manual_seed(0)) / 30
    with torch.no_grad():
        probability = torch.softmax(whole.head(z), dim=1)[:, 1]
        torch.testing.assert_close(torch.sigmoid(folded.head(z))[:, 0], probability, rtol=1e-4, atol=1e-6)
    assert probability.std() > 0.01  # they are no constant


# --- what is no SA-DMIL


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("4/kernel", None, r"layer_with_weights-4/kernel .* should be \(3, 3, 32, 32\), and it is missing: give one"),
        ("0/kernel", (16, 3, 5, 5), r"-0/kernel .* should be \(5, 5, 3, 16\), and it is \(16, 3, 5, 5\): give one"),
        ("14/bias", (3,), r"-14/bias .* should be \(1,\), and it is \(3,\): give one"),
        ("14/kernel", (128, 2), r"-14/kernel .* should be \(128, 1\), and it is \(128, 2\): give one"),
        ("12/u", (1152, 32), r"-12/u .* should be \(1152, 64\), and it is \(1152, 32\): give one"),
    ],
)
def test_other_tensors_are_told(
    tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...] | None, told: str
) -> None:
    other = dict(tensors)
    del other[f"layer_with_weights-{name}{LAST}"]
    if shape is not None:
        other[f"layer_with_weights-{name}{LAST}"] = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match=told):
        sa_dmil.state_dict(other)


def test_a_released_file_is_known_by_its_hash(tmp_path: Path) -> None:
    assert sa_dmil.released_as("57ae38f0" + "1" * 56) == "att_0_9"
    assert sa_dmil.released_as("fc734d20" + "1" * 56) is None  # the whole hash is known
    (tmp_path / "x").write_bytes(b"abc")
    assert sa_dmil.sha256_of(tmp_path / "x").startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    for name in ("baseline", "att_0_5"):
        data = shared_data(f"sa_mil/checkpoints/{name}.ckpt.data-00000-of-00001")
        assert sa_dmil.released_as(sa_dmil.sha256_of(data)) == name


# --- the original's answers


@dataclass(frozen=True)
class Answers:
    name: str
    features: Tensor  # [57, 1152]
    attention: Tensor  # [57]
    embedding: Tensor  # [1152]
    raw: Tensor  # [1 or 2] of the head
    logit: Tensor  # [1] of the converted network
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=["baseline", "att_0_5"])
def answers(request: pytest.FixtureRequest) -> Answers:
    """The 24 slices go through the network of configs/released.json, which adds the padding."""
    tensors = read_tensors(shared_data(f"sa_mil/checkpoints/{request.param}.ckpt.index"))
    expected = dict(np.load(shared_data(f"sa_mil/expected/expected_{request.param}.npz")))
    low = np.random.default_rng(20231).random((SLICES, 16, 16, 3), dtype=np.float32)
    slices = np.kron(low, np.ones((1, 32, 32, 1), np.float32))  # slice, row, column, window
    image = torch.from_numpy(slices).permute(3, 1, 2, 0)[None]

    released, whole = network("released"), network(outputs=2)
    released.load_state_dict(sa_dmil.state_dict(tensors))
    heard: dict[str, Tensor] = {}
    released.encoder.register_forward_hook(lambda _, __, out: heard.update(features=out[0].t()))
    released.aggregator.register_forward_hook(
        lambda _, __, out: heard.update(z=out.embedding[0], a=out.attention[0, 0])
    )
    with torch.no_grad():
        logit = released(image)[0]
        head = released.head
        if sa_dmil.head_outputs(tensors) == 2:
            whole.load_state_dict(sa_dmil.state_dict(tensors, one_logit=False))
            head = whole.head
        raw = head(heard["z"][None])[0]
    return Answers(request.param, heard["features"], heard["a"], heard["z"], raw, logit, expected)


def test_features_are_those_of_the_original(answers: Answers) -> None:
    assert answers.features.shape[0] == SLOTS
    wanted = answers.expected["features"]  # of the first 25 slots, one of them padding
    np.testing.assert_allclose(answers.features[: len(wanted)], wanted, rtol=0, atol=1e-4)


def test_attention_is_that_of_the_original(answers: Answers) -> None:
    np.testing.assert_allclose(answers.attention, answers.expected["attention"], rtol=0, atol=1e-6)
    assert answers.attention[SLICES:].sum() > 0.1  # padding takes part


def test_the_scan_is_judged_as_by_the_original(answers: Answers) -> None:
    np.testing.assert_allclose(answers.embedding, answers.expected["z"], rtol=0, atol=1e-5)
    wanted = answers.expected["output"]
    if answers.name == "att_0_5":
        np.testing.assert_allclose(answers.raw, wanted, rtol=0, atol=1e-5)
        probability = np.exp(wanted[1]) / np.exp(wanted).sum()
    else:
        probability = wanted[0]
    np.testing.assert_allclose(torch.sigmoid(answers.logit[0]), probability, rtol=0, atol=1e-5)
