# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A bag in blocks gives what the whole bag gives, or is refused."""

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from scripts.networks import AttentionPool, FeatureProjection, MILNetwork, SmoothAttentionPool
from scripts.networks.streaming import Blocks, predict_in_blocks
from tests.networks.compositions import COMPOSITIONS, FEATURES, close, network, outputs

REFUSED = {  # what needs all instances at once, and the reason given
    "max": "MaxPool needs the whole bag",
    "smooth transformer, chain": "SmoothTransformer needs the whole bag",
    "smooth transformer, landmarks": "SmoothTransformer needs the whole bag",
    "smooth transformer, lattice": "SmoothTransformer needs the whole bag",
    "gated, slots": "without slots and without feature_weights",
    "smooth early, lattice weighted by features": "without slots and without feature_weights",
}


def bag(n: int, spatial_dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, coords and a mask of ones."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(1, FEATURES, n, generator=generator)
    place = torch.randperm(n, generator=generator)
    coords = torch.stack([place % 7, place // 7]) if spatial_dims == 2 else place[None]
    return x, coords.float()[None], torch.ones(1, 1, n)


def in_blocks(x: Tensor, size: int) -> Blocks:
    return lambda: iter(x.split(size, dim=2))


@pytest.mark.parametrize("size", [1, 8, 64])
@pytest.mark.parametrize("name", sorted(COMPOSITIONS.keys() - REFUSED))
def test_a_bag_in_blocks_is_the_bag(name: str, size: int) -> None:
    net = network(name)
    x, coords, mask = bag(20, net.spatial_dims)
    wanted, got = net.predict(x, coords), predict_in_blocks(net, in_blocks(x, size), mask, coords)
    told = outputs(wanted, 20)
    assert outputs(got, 20).keys() == told.keys()
    for name_of_field, values in outputs(got, 20).items():
        close(values, told[name_of_field])


@pytest.mark.parametrize("pool", [AttentionPool(8, 5), SmoothAttentionPool(8, 5)])
def test_a_bag_in_blocks_tells_what_an_instance_changes_behind_any_head(pool: nn.Module) -> None:
    head = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2))
    net = MILNetwork(FeatureProjection(FEATURES, 8), pool, head, 2).eval()
    x, coords, mask = bag(20, 2)
    wanted, got = net.predict(x, coords), predict_in_blocks(net, in_blocks(x, 6), mask, coords)
    assert wanted.leave_one_out is not None
    assert got.leave_one_out is not None
    close(got.leave_one_out, wanted.leave_one_out)


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_what_needs_the_whole_bag_is_refused(name: str, message: str) -> None:
    net = network(name)
    x, coords, mask = bag(10, net.spatial_dims)
    with pytest.raises(ValueError, match=message):
        predict_in_blocks(net, in_blocks(x, 4), mask, coords)


def test_softmax_of_large_scores_does_not_overflow() -> None:
    """The largest score comes last, and is far above the range of exp."""
    net = network("attention, three classes")
    net.aggregator.weigh.weight.data.fill_(500.0)
    x, _, mask = bag(40, 0)
    x = x[..., net.predict(x).scores[0, 0].argsort()]
    got = predict_in_blocks(net, in_blocks(x, 4), mask)
    assert got.scores.abs().max() > 100
    torch.testing.assert_close(got.logits, net.predict(x).logits)


@pytest.mark.parametrize(("width", "readings"), [(FEATURES - 2, 1), (FEATURES, 2)])
def test_a_bag_is_read_twice_only_if_its_encoded_features_are_no_smaller(width: int, readings: int) -> None:
    net = MILNetwork(FeatureProjection(FEATURES, width), SmoothAttentionPool(width, 5), nn.Identity(), 2).eval()
    x, coords, mask = bag(40, 2)
    blocks = Mock(side_effect=in_blocks(x, 8))
    close(predict_in_blocks(net, blocks, mask, coords).logits, net.predict(x, coords).logits)
    assert blocks.call_count == readings


@pytest.mark.parametrize("name", ["attention, three classes", "mean", "smooth early, lattice"])
def test_half_precision_does_not_overflow(name: str) -> None:
    """A sum over many patches would; a mean does not."""
    net, n = network(name), 20_000
    x, place = 30 * torch.rand(1, FEATURES, n) + 30, torch.arange(n)
    coords = (torch.stack([place % 200, place // 200]) if net.spatial_dims == 2 else place[None]).float()[None]
    with torch.autocast("cpu", dtype=torch.float16):
        got = predict_in_blocks(net, in_blocks(x, 5000), torch.ones(1, 1, n), coords)
    torch.testing.assert_close(got.logits.float(), net.predict(x, coords).logits, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["attention, three classes", "smooth early, lattice", "instance mean"])
def test_empty_blocks_are_skipped_and_those_that_are_not_the_bag_refused(name: str) -> None:
    net = network(name)
    x, coords, mask = bag(10, net.spatial_dims)
    got = predict_in_blocks(net, lambda: [x[..., :0], x[..., :4], x[..., 4:4], x[..., 4:]], mask, coords)
    close(got.logits, net.predict(x, coords).logits)
    for there in (8, 12):
        with pytest.raises(ValueError, match=f"the blocks hold {there} instances, the mask has 10"):
            predict_in_blocks(net, in_blocks(bag(there, 2)[0], 4), mask, coords)
    mask[..., 9] = 0
    with pytest.raises(ValueError, match="a bag in blocks has no padding"):
        predict_in_blocks(net, in_blocks(x, 4), mask)
