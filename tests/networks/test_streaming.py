# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A bag in blocks gives what the whole bag gives, or is refused."""

import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from scripts.networks import AttentionPool, FeatureProjection, MILNetwork, SmoothAttentionPool
from scripts.networks.streaming import Blocks, predict_in_blocks
from tests.networks.compositions import COMPOSITIONS, FEATURES, close, network, outputs
from tests.shared_data import ROOT

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


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("name", sorted(name for name in COMPOSITIONS.keys() - REFUSED if name.startswith("smooth")))
def test_some_columns_after_the_other_give_what_all_together_give(name: str, columns: int) -> None:
    net = network(name)
    x, coords, mask = bag(20, net.spatial_dims)
    wanted, got = net.predict(x, coords), predict_in_blocks(net, in_blocks(x, 6), mask, coords, columns * 20 * 4)
    for name_of_field, values in outputs(got, 20).items():
        close(values, outputs(wanted, 20)[name_of_field])


@pytest.mark.parametrize("placement", ["early", "mid", "late"])
def test_columns_of_a_reduced_precision_add_up_too(placement: str) -> None:
    net = MILNetwork(FeatureProjection(FEATURES, 8), SmoothAttentionPool(8, 5, placement), nn.Linear(8, 1), 2).eval()
    x, coords, mask = bag(40, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = predict_in_blocks(net, in_blocks(x, 16), mask, coords, 2 * 40 * 4)
    torch.testing.assert_close(got.scores.float(), net.predict(x, coords).scores, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("width", "columns", "placement", "readings"),
    [
        (FEATURES - 2, 5, "early", 1),  # the encoder's features are small, and kept
        (FEATURES, 5, "early", 2),
        (FEATURES - 2, 1, "early", 6),  # too large to be kept: once for each column and once for the sum
        (FEATURES, 2, "mid", 4),
        (FEATURES, 1, "late", 2),  # nothing is smoothed but f
    ],
)
def test_a_bag_is_read_as_often_as_what_is_kept_of_it_demands(
    width: int, columns: int, placement: str, readings: int
) -> None:
    pool = SmoothAttentionPool(width, 5, placement)
    net = MILNetwork(FeatureProjection(FEATURES, width), pool, nn.Identity(), 2).eval()
    x, coords, mask = bag(40, 2)
    blocks = Mock(side_effect=in_blocks(x, 8))
    close(predict_in_blocks(net, blocks, mask, coords, columns * 40 * 4).logits, net.predict(x, coords).logits)
    assert blocks.call_count == readings


PEAKS = """
import sys
import torch
from torch import nn
from benchmarks.bags import tissue
from benchmarks.measure import _settled, _status
from scripts.engine.evaluator import give_back_blocks
from scripts.networks import FeatureProjection, MILNetwork, SmoothAttentionPool
from scripts.networks.streaming import predict_in_blocks

torch.set_num_threads(1)
give_back_blocks(2**20)
n = 200_000
net = MILNetwork(FeatureProjection(64, 32), SmoothAttentionPool(32, 128, steps=2), nn.Linear(32, 1), 2).eval()
coords, block = tissue(n)[None].float(), torch.randn(1, 8000, 64).transpose(1, 2)
for at_once in map(int, sys.argv[1:]):
    before = _settled()
    predict_in_blocks(net, lambda: [block] * (n // 8000), torch.ones(1, 1, n), coords, at_once)
    print(_status("VmHWM") - before)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_what_is_held_at_once() -> None:
    """The columns of this bag take 102 MB, the features of its encoder 26 MB, its graph and Ã some 65 MB."""
    command = [sys.executable, "-c", PEAKS, str(2**26), str(2**24), str(2**30)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    _, little, much = (int(line) / 1e6 for line in ended.stdout.split())  # the first has loaded what is needed
    assert little < 190
    assert much > little + 100


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
