# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from scripts.networks import Features, MaxPool, MILNetwork, SmoothAttentionPool
from scripts.networks.streaming import Blocks, predict_in_blocks
from tests.networks.compositions import COMPOSITIONS, FEATURES, network

WHOLE = {  # what needs all instances at once
    name
    for name in COMPOSITIONS
    if "transformer" in name or "weighted by features" in name or name in ("max", "gated, slots")
}


def bag(n: int, spatial_dims: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(1, FEATURES, n, generator=generator)
    place = torch.randperm(n, generator=generator)
    coords = torch.stack([place % 7, place // 7]) if spatial_dims == 2 else place[None]
    return x, coords.float()[None]


def in_blocks(x: Tensor, size: int) -> Blocks:
    def blocks() -> Iterator[Tensor]:
        yield from x.split(size, dim=2)

    return blocks


@pytest.mark.parametrize("size", [1, 8, 40, 64])
@pytest.mark.parametrize("name", sorted(COMPOSITIONS.keys() - WHOLE))
def test_a_bag_in_blocks_is_the_bag(name: str, size: int) -> None:
    net = network(name)
    x, coords = bag(40, net.spatial_dims)
    wanted = net.predict(x, coords)
    got = predict_in_blocks(net, in_blocks(x, size), torch.ones(1, 1, 40), coords)
    torch.testing.assert_close(got.logits, wanted.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.scores, wanted.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.attention, wanted.attention, atol=1e-6, rtol=1e-4)


def test_softmax_of_large_scores_does_not_overflow() -> None:
    """The largest score comes last, and is far above the range of exp."""
    net = network("attention")
    assert isinstance(net.aggregator.weigh, nn.Linear)
    net.aggregator.weigh.weight.data.fill_(500.0)
    x, _ = bag(40, 0)
    order = net.predict(x).scores[0, 0].argsort()
    x = x[..., order]
    got = predict_in_blocks(net, in_blocks(x, 4), torch.ones(1, 1, 40))
    assert got.scores.abs().max() > 100
    torch.testing.assert_close(got.logits, net.predict(x).logits)


@pytest.mark.parametrize(("encoder_out", "readings"), [(FEATURES - 2, 1), (FEATURES, 2)])
def test_a_bag_is_read_twice_only_if_its_encoded_features_are_no_smaller(encoder_out: int, readings: int) -> None:
    net = network("smooth early, features as they are")
    if encoder_out < FEATURES:
        net.encoder, net.aggregator, net.head = _Fewer(encoder_out), SmoothAttentionPool(encoder_out, 5), nn.Identity()
    net.eval()
    x, coords = bag(40, 2)
    begun = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal begun
        begun += 1
        yield from x.split(8, dim=2)

    predict_in_blocks(net, blocks, torch.ones(1, 1, 40), coords)
    assert begun == readings


class _Fewer(nn.Module):
    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image[:, : self.out_features]


@pytest.mark.parametrize("name", ["attention", "gated", "mean", "smooth early, lattice"])
def test_half_precision_does_not_overflow(name: str) -> None:
    """A sum over many patches would; a mean does not."""
    net = network(name)
    n = 40_000
    x = 30 * torch.rand(1, FEATURES, n) + 30
    place = torch.arange(n)
    coords = (torch.stack([place % 200, place // 200]) if net.spatial_dims == 2 else place[None]).float()[None]
    with torch.autocast("cpu", dtype=torch.float16):
        got = predict_in_blocks(net, in_blocks(x, 5000), torch.ones(1, 1, n), coords)
    torch.testing.assert_close(got.logits.float(), net.predict(x, coords).logits, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["attention", "smooth early, lattice", "instance max"])
@pytest.mark.parametrize("there", [30, 48])
def test_blocks_that_are_not_the_bag_are_refused(name: str, there: int) -> None:
    net = network(name)
    _, coords = bag(40, net.spatial_dims)
    x, _ = bag(there, net.spatial_dims)
    with pytest.raises(ValueError, match=f"the blocks hold {there} instances, the mask names 40"):
        predict_in_blocks(net, in_blocks(x, 8), torch.ones(1, 1, 40), coords)


def test_an_empty_block_is_passed_over() -> None:
    net = network("attention")
    x, _ = bag(10, 0)
    blocks = [x[..., :0], x[..., :4], x[..., 4:4], x[..., 4:]]
    got = predict_in_blocks(net, lambda: blocks, torch.ones(1, 1, 10))
    torch.testing.assert_close(got.logits, net.predict(x).logits)


def test_padding_in_blocks_is_refused() -> None:
    x, _ = bag(10, 0)
    mask = torch.ones(1, 1, 10)
    mask[..., 9] = 0
    with pytest.raises(ValueError, match="a bag in blocks has no padding"):
        predict_in_blocks(network("attention"), in_blocks(x, 4), mask)


def test_what_needs_the_whole_bag_says_so() -> None:
    x, _ = bag(10, 0)
    net = MILNetwork(Features(FEATURES), MaxPool(), nn.Identity()).eval()
    with pytest.raises(ValueError, match="MaxPool needs the whole bag at once"):
        predict_in_blocks(net, in_blocks(x, 4), torch.ones(1, 1, 10))


@pytest.mark.parametrize("name", ["gated, slots", "smooth early, lattice weighted by features"])
def test_what_looks_at_other_instances_first_is_refused(name: str) -> None:
    net = network(name)
    x, coords = bag(10, net.spatial_dims)
    with pytest.raises(ValueError, match="without slots and without feature_weights"):
        predict_in_blocks(net, in_blocks(x, 4), torch.ones(1, 1, 10), coords)
