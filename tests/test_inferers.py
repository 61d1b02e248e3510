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
"""The inferer asks the network itself, wrapped or not, for all it can say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from scripts.errors import InputError
from scripts.inferers import BagInferer, PrepareBagInBlocks, StreamingInferer
from scripts.networks import MILNetwork
from tests.networks.compositions import COMPOSITIONS, FEATURES, network


def a_batch(net: MILNetwork) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, FEATURES, 4, generator=generator)
    coords = torch.arange(4.0).expand(2, max(net.spatial_dims, 1), 4)
    mask = torch.tensor([[[1.0, 1, 1, 1]], [[1.0, 1, 1, 0]]])
    return image, coords, mask


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_the_answer_is_the_networks_prediction(name: str, wrapped: bool) -> None:
    net = network(name).eval()
    image, coords, mask = a_batch(net)
    given = SimpleNamespace(module=net) if wrapped else net  # DDP keeps the network as its `module`
    got = BagInferer()(image, given, coords=coords, mask=mask)  # type: ignore[arg-type]
    wanted = net.predict(image, coords, mask)
    assert got.keys() == {"logits", "scores", "attention"}
    torch.testing.assert_close(got["logits"], wanted.logits, atol=0, rtol=0)
    for key in ("scores", "attention"):  # of the bag alone, where the network fills it up
        torch.testing.assert_close(got[key], getattr(wanted, key)[..., :4], atol=0, rtol=0)


@pytest.mark.parametrize("name", ["gated", "smooth early, lattice", "instance mean"])
def test_the_answer_in_blocks_is_the_answer(name: str) -> None:
    net = network(name).eval()
    image, coords, mask = (one[:1] for one in a_batch(net))

    def read(path: str, size: int) -> list[Tensor]:
        assert path == "a.h5"
        return list(image.split(size, dim=2))

    prepared = PrepareBagInBlocks()({"image": ["a.h5"], "coords": coords, "mask": mask, "label": None})
    inputs, _, args, kwargs = prepared
    got = StreamingInferer(read, block_size=3)(inputs, net, *args, **kwargs)
    wanted = BagInferer()(image, net, coords, mask)
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, atol=1e-6, rtol=1e-5)


def test_a_block_holds_at_least_one_instance() -> None:
    with pytest.raises(InputError, match="block_size is 0: give 1 or more"):
        StreamingInferer(lambda path, size: [], block_size=0)


def test_coords_and_mask_reach_the_network_by_name_and_by_place() -> None:
    net = network(next(name for name in COMPOSITIONS if network(name).spatial_dims)).eval()
    image, coords, mask = a_batch(net)
    by_name = BagInferer()(image, net, coords=coords, mask=mask)
    by_place = BagInferer()(image, net, coords, mask)
    without_mask = BagInferer()(image, net, coords=coords)
    torch.testing.assert_close(by_name["attention"], by_place["attention"], atol=0, rtol=0)
    assert by_name["attention"][1, 0, 3] == 0
    assert without_mask["attention"][1, 0, 3] > 0


def test_in_training_the_answer_is_the_same_dictionary() -> None:
    """`forward` gives a network in training another type; an evaluator in training mode must not notice."""
    net = network(next(iter(COMPOSITIONS))).train()
    got = BagInferer()(*a_batch(net)[:1], net)
    assert {key: tuple(value.shape) for key, value in got.items()} == {
        "logits": (2, 1), "scores": (2, 1, 4), "attention": (2, 1, 4),
    }  # fmt: skip
