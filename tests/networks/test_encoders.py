# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch

from scripts.networks.encoders import FeatureProjection, SliceCNN


def test_slice_cnn_has_the_features_of_the_paper() -> None:
    """6×6×32 = 1152 features, and the published count of weights with Keras' two moving statistics per channel."""
    cnn = SliceCNN()
    assert cnn.out_features == 1152
    weights = sum(p.numel() for p in cnn.parameters())
    moving = sum(b.numel() for name, b in cnn.named_buffers() if "running" in name)
    gated_attention, head = 2 * 1152 * 64 + 64, 1152 * 128 + 128 + 128 + 1
    assert weights + moving + gated_attention + head == 338_785


def test_slice_cnn_flattens_row_column_channel() -> None:
    cnn = SliceCNN(image_size=32, channels=(4, 5)).eval()
    image = torch.rand(1, 3, 32, 32, 2)
    maps = cnn.blocks(image[..., 1]).detach()  # [1, C, H, W]
    expected = [float(maps[0, c, i, j]) for i in range(maps.shape[2]) for j in range(maps.shape[3]) for c in range(5)]
    torch.testing.assert_close(cnn(image, torch.ones(1, 1, 2))[0, :, 1], torch.tensor(expected))


def test_padding_does_not_move_the_batch_statistics() -> None:
    """In training too: a padded batch gives the real slices exactly what they get alone."""
    torch.manual_seed(0)
    cnn = SliceCNN(image_size=16, channels=(4, 4), dropout=0).train()
    image = torch.rand(1, 3, 16, 16, 3)
    padded = torch.cat([image, torch.zeros(1, 3, 16, 16, 4)], dim=-1)
    mask = torch.tensor([[[1.0] * 3 + [0.0] * 4]])
    torch.testing.assert_close(cnn(padded, mask)[..., :3], cnn(image, torch.ones(1, 1, 3)))
    assert cnn(padded, mask)[..., 3:].abs().sum() == 0


def test_projection_is_a_relu_of_a_linear_layer() -> None:
    projection = FeatureProjection(4, 3)
    x, mask = torch.randn(2, 4, 5), torch.ones(2, 1, 5)
    mask[1, 0, 3:] = 0
    expected = torch.relu(torch.einsum("dk,bkn->bdn", projection.project.weight, x) + projection.project.bias[:, None])
    torch.testing.assert_close(projection(x, mask), expected * mask)


def test_input_of_another_size_is_refused_with_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"slices of 3×20×20 for a network of 3×16×16: set image_size"):
        SliceCNN(image_size=16, channels=(4,))(torch.rand(1, 3, 20, 20, 2), torch.ones(1, 1, 2))
    with pytest.raises(ValueError, match="6 blocks leave nothing of a 64×64 slice"):
        SliceCNN(image_size=64)
    with pytest.raises(ValueError, match="1536 features per slice or patch for a network of 1024: set in_features"):
        FeatureProjection(1024, 3)(torch.randn(1, 1536, 2), torch.ones(1, 1, 2))


def test_pooling_before_the_normalisation_changes_no_bit_whichever_way_it_slopes() -> None:
    torch.manual_seed(0)
    network = SliceCNN(image_size=48, channels=(8, 8, 4)).eval()
    for norm in filter(lambda layer: isinstance(layer, torch.nn.BatchNorm2d), network.blocks):
        for each in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.normal_(each)
        torch.nn.init.uniform_(norm.running_var, 0.1, 2)
    slices = torch.randn(5, 3, 48, 48).to(memory_format=torch.channels_last)
    with torch.no_grad():
        features = network(slices.movedim(0, -1)[None], torch.ones(1, 1, 5))[0].t()
        wanted = network.blocks(slices).permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(features, wanted)


@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
def test_slices_a_few_at_a_time_are_the_same_training(at_once: int) -> None:
    """Features, every gradient and the running statistics, in float64; then the answer in evaluation."""
    torch.manual_seed(0)
    whole = SliceCNN(image_size=41, channels=(6, 5, 4), dropout=0, momentum=0.1).double()
    for norm in filter(lambda layer: isinstance(layer, torch.nn.BatchNorm2d), whole.blocks):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    parts = copy.deepcopy(whole)
    parts.slices_at_once = at_once
    image = torch.randn(2, 3, 41, 41, 4, dtype=torch.double, requires_grad=True)
    mask = torch.tensor([[[1.0, 1, 1, 1]], [[1, 1, 1, 0]]])
    found = []
    for network in (whole, parts):
        image.grad = None
        features = network(image, mask)
        (features * torch.linspace(-1, 2, features.numel()).view_as(features)).square().sum().backward()
        network.eval()
        told = [features, image.grad, *(p.grad for p in network.parameters()), *network.buffers(), network(image, mask)]
        found.append([each.detach().clone() for each in told])
    for got, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_slices_a_few_at_a_time_take_a_fraction_of_the_memory() -> None:
    """What the graph of a training step keeps: by hand, the pooled maps of each block twice, and the slices."""
    kept = []
    for at_once in (None, 4):
        network, sizes = (
            SliceCNN(image_size=128, channels=(16, 32), dropout=0, slices_at_once=at_once),
            dict[int, int](),
        )

        def keep(each: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[each.data_ptr()] = each.nbytes
            return each

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
            network(torch.randn(1, 3, 128, 128, 24), None).sum().backward()
        kept.append(sum(sizes.values()))
    pooled = 4 * 24 * (16 * 64**2 + 32 * 31**2)
    assert kept[1] < 2.2 * pooled + 4 * 24 * 3 * 128**2
    assert kept[1] < kept[0] / 3


def test_a_frozen_normalisation_stays_so_and_one_of_several_processes_is_refused() -> None:
    torch.manual_seed(0)
    whole = SliceCNN(image_size=24, channels=(4, 4), dropout=0)
    parts = copy.deepcopy(whole)
    parts.slices_at_once = 2
    image = torch.randn(1, 3, 24, 24, 5)
    for network in (whole, parts):
        for norm in filter(lambda layer: isinstance(layer, torch.nn.BatchNorm2d), network.blocks):
            norm.eval()
        network(image, None).square().sum().backward()
    torch.testing.assert_close(parts(image, None), whole(image, None))
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert all(torch.equal(*pair) for pair in zip(parts.buffers(), whole.buffers(), strict=True))
    with pytest.raises(ValueError, match="leave out it or SyncBatchNorm"):
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(parts.train())(image, None)


def test_inference_on_a_processor_takes_few_of_large_slices_at_a_time_and_finds_the_same() -> None:
    network, image = SliceCNN(image_size=256, channels=(16, 4), dropout=0).eval(), torch.randn(1, 3, 256, 256, 9)
    calls = []
    network.blocks[2].register_forward_hook(lambda _layer, _given, maps: calls.append(len(maps)))
    with torch.no_grad():
        found = network(image, None)
        network.slices_at_once = 9
        torch.testing.assert_close(found, network(image, None), rtol=1e-5, atol=1e-6)
    assert calls == [4, 4, 1, 9]


def test_slices_at_once_are_one_or_more() -> None:
    with pytest.raises(ValueError, match="slices_at_once is 0: give 1 or more, or null for all"):
        SliceCNN(image_size=16, channels=(4,), slices_at_once=0)


@pytest.mark.parametrize("training", [True, False])
def test_maps_lie_with_channels_last(training: bool) -> None:
    """One convolution that answers in the other order makes all behind it so, which takes twice the time."""
    network = SliceCNN(image_size=48, channels=(8, 8)).train(training)
    layers = [layer for layer in network.blocks if training or isinstance(layer, torch.nn.BatchNorm2d)]
    lie = []

    def look(_layer: object, _given: object, maps: torch.Tensor) -> None:
        lie.append(maps.is_contiguous(memory_format=torch.channels_last))

    for layer in layers:
        layer.register_forward_hook(look)
    network(torch.randn(2, 3, 48, 48, 5), torch.tensor([[[1.0, 1, 1, 1, 1]], [[1, 1, 1, 0, 0]]]))
    assert len(lie) == len(layers)
    assert all(lie)
