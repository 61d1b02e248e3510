# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from typing import TypeVar

import pytest
import torch
from torch import nn

from benchmarks.ct import bare_forward
from benchmarks.slices import SMALL, bare_stack, beside_bare, features_of, head_ct_parts, ratios, scan_of_noise
from scripts.networks import MILNetwork, SliceCNN

Trained = TypeVar("Trained", bound=nn.Module)


def trained(network: Trained) -> Trained:
    """As after some training: running statistics and scales of either sign."""
    torch.manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(values)  # type: ignore[arg-type]
    return network.eval()


def test_the_bare_stack_computes_what_the_slice_network_does_and_has_its_layers_alone() -> None:
    encoder = trained(SliceCNN(64, channels=(16, 32, 32, 32)))
    stack, scan = bare_stack(encoder).eval(), scan_of_noise(5, 64)
    slices = scan["image"].permute(3, 0, 1, 2)
    wanted = encoder(scan["image"][None], scan["mask"][None])[0].t()
    torch.testing.assert_close(features_of(stack(slices)), wanted, rtol=1e-4, atol=1e-4)
    assert {type(layer) for layer in stack} == {nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.MaxPool2d}
    assert sum(map(torch.numel, stack.parameters())) == sum(map(torch.numel, encoder.parameters()))
    assert all(
        layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in stack if isinstance(layer, nn.Conv2d)
    )


@torch.no_grad()
def test_the_bare_forward_of_inference_gives_the_logits_of_the_network() -> None:
    network: MILNetwork = trained(head_ct_parts("cpu", **SMALL)[0])
    bags = [
        {key: scan[key][None] for key in ("image", "coords", "mask")} for scan in map(scan_of_noise, (4, 7), (64, 64))
    ]
    for logits, bag in zip(bare_forward(network, bags)(), bags, strict=True):
        torch.testing.assert_close(logits, network(**bag), rtol=1e-4, atol=1e-5)


def test_the_ratio_of_a_turn_is_of_both_sides_of_that_turn() -> None:
    assert ratios([{"ours": 3.0, "bare": 2.0}, {"ours": 1.0, "bare": 4.0}]) == [1.5, 0.25]
    took = beside_bare(n=2, turns=3, **SMALL)
    assert {run: len(of["turns"]) for run, of in took.items()} == {"step": 3, "forward": 3}
    assert all(seconds > 0 for of in took.values() for turn in of["turns"] for seconds in turn.values())
    for of in took.values():
        assert of["peak_bytes"].keys() == {"ours", "bare"}
    with pytest.raises(KeyError, match="no_such_network"):
        beside_bare(n=2, turns=1, network="no_such_network", **SMALL)
