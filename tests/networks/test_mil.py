# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The invariants that every composition keeps."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scripts.losses import SmoothMILLoss
from scripts.networks import (
    BagPrediction,
    FeatureProjection,
    Features,
    GatedAttentionPool,
    MILNetwork,
    SmoothAttentionPool,
)
from tests.networks.compositions import COMPOSITIONS, FEATURES, bags, network

each_composition = pytest.mark.parametrize("name", COMPOSITIONS)
thorough = settings(max_examples=20, deadline=None)


def padded(all_bags: list[tuple[Tensor, Tensor]], spare: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """One batch [B, D, N], [B, k, N], [B, 1, N] of unequal bags; padding holds nonsense."""
    n = max(x.shape[1] for x, _ in all_bags) + spare
    image = torch.full((len(all_bags), FEATURES, n), 7.0)
    coords = torch.zeros(len(all_bags), all_bags[0][1].shape[0], n)
    mask = torch.zeros(len(all_bags), 1, n)
    for b, (x, c) in enumerate(all_bags):
        image[b, :, : x.shape[1]], coords[b, :, : x.shape[1]], mask[b, :, : x.shape[1]] = x, c, 1
    return image, coords, mask


def draw(data: st.DataObject, net: MILNetwork, count: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [data.draw(bags(max(net.spatial_dims, 1))) for _ in range(count)]


@each_composition
@thorough
@given(data=st.data())
def test_a_batch_is_its_bags_one_by_one_and_padding_changes_nothing(data: st.DataObject, name: str) -> None:
    net = network(name)
    several = draw(data, net, count=3)
    together = net.predict(*padded(several, spare=2))
    for b, (x, coords) in enumerate(several):
        alone, n = net.predict(x[None], coords[None]), x.shape[1]
        torch.testing.assert_close(together.logits[b], alone.logits[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.scores[b, :, :n], alone.scores[0, :, :n], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.attention[b, :, :n], alone.attention[0, :, :n], atol=1e-5, rtol=1e-4)
        assert (together.attention[b, :, n:].sum() == 0) == (net.slots is None)  # a slot is real, full or not


@each_composition
@thorough
@given(data=st.data())
def test_permuting_instances_permutes_scores_and_keeps_logits(data: st.DataObject, name: str) -> None:
    net = network(name)
    ((x, coords),) = draw(data, net)
    order = torch.tensor(data.draw(st.permutations(range(x.shape[1]))))
    before, after = net.predict(x[None], coords[None]), net.predict(x[None][..., order], coords[None][..., order])
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-4)
    n = len(order)
    torch.testing.assert_close(after.scores[..., :n], before.scores[..., order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.attention[..., :n], before.attention[..., order], atol=1e-5, rtol=1e-4)


@functools.cache
def scripted(name: str) -> tuple[MILNetwork, torch.jit.ScriptModule]:
    net = network(name)
    return net, torch.jit.script(net)


@each_composition
@thorough
@given(data=st.data())
def test_scripted_is_eager(data: st.DataObject, name: str) -> None:
    net, script = scripted(name)
    batch = padded(draw(data, net, count=2))
    torch.testing.assert_close(script(*batch), net(*batch), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(script.predict(*batch).scores, net.predict(*batch).scores, atol=1e-5, rtol=1e-4)


@each_composition
def test_scripting_leaves_the_network_as_it_was(name: str) -> None:
    net = network(name)
    parts, keys = list(net.modules()), list(net.state_dict())
    torch.jit.script(net)
    assert all(one is other for one, other in zip(net.modules(), parts, strict=True))
    assert list(net.state_dict()) == keys


@each_composition
def test_traced_is_eager(name: str) -> None:
    net = network(name)
    places = torch.arange(5.0).expand(1, max(net.spatial_dims, 1), 5)
    bag = (torch.randn(1, FEATURES, 5), places, torch.ones(1, 1, 5))
    torch.testing.assert_close(torch.jit.trace(net, bag)(*bag), net(*bag), atol=1e-5, rtol=1e-4)


@each_composition
def test_one_instance_needs_nothing_but_itself(name: str) -> None:
    """What `verify_net_in_out` asks."""
    logits = network(name)(torch.randn(1, FEATURES, 1))
    assert logits.shape[0] == 1
    assert logits.isfinite().all()


@each_composition
def test_training_gives_the_loss_everything_and_evaluation_gives_logits(name: str) -> None:
    net = network(name)
    x, coords = torch.randn(1, FEATURES, 4), torch.arange(4.0).expand(1, max(net.spatial_dims, 1), 4)
    in_training = net.train()(x, coords)
    assert isinstance(in_training, BagPrediction)
    in_training.logits.sum().backward()
    assert all(p.grad is not None for p in net.head.parameters())
    in_evaluation = net.eval()(x, coords)
    assert isinstance(in_evaluation, Tensor)
    torch.testing.assert_close(in_evaluation, in_training.logits)


def test_slices_without_coords_are_taken_in_the_order_given() -> None:
    net = network("smooth early, chain")
    x = torch.randn(1, FEATURES, 5)
    torch.testing.assert_close(net(x), net(x, torch.arange(5.0).view(1, 1, 5)))
    assert not torch.allclose(net(x), net(x, torch.tensor([[[0.0, 2.0, 4.0, 1.0, 3.0]]])))


def test_slots_are_zeros_taken_for_real() -> None:
    """The same as the bag with zeros behind it in a network without slots; and so is a padded batch."""
    torch.manual_seed(0)
    slotted = MILNetwork(Features(4), GatedAttentionPool(4, 3), nn.Linear(4, 1), slots=7).eval()
    plain = MILNetwork(slotted.encoder, slotted.aggregator, slotted.head).eval()
    x = torch.randn(2, 4, 5)
    mask = torch.tensor([[[1.0, 1, 1, 1, 1]], [[1.0, 1, 1, 0, 0]]])
    filled = torch.cat([x * mask, torch.zeros(2, 4, 2)], dim=2)
    got, wanted = slotted.predict(x, None, mask), plain.predict(filled)
    for one, other in ((got.logits, wanted.logits), (got.attention, wanted.attention)):
        torch.testing.assert_close(one, other)
    assert float(got.attention[1, 0, :3].sum().detach()) < 1


def test_slots_of_a_chain_stand_behind_its_last_slice() -> None:
    net = MILNetwork(Features(4), GatedAttentionPool(4, 3), nn.Linear(4, 1), spatial_dims=1, slots=5)
    graph = net.predict(torch.randn(1, 4, 3), torch.tensor([[[2.0, 9.0, 4.0]]])).graph
    assert graph.neighbours[0, 1, 1] == 3  # behind the slice at 9
    assert graph.weights.sum() == 2 * 4


@each_composition
def test_a_bag_without_a_real_instance_is_refused(name: str) -> None:
    """In a batch its NaN would reach every weight."""
    net = network(name)
    mask = torch.ones(2, 1, 4)
    mask[1] = 0
    with pytest.raises(ValueError, match="a bag of the batch holds no real instance: leave it out"):
        net(torch.randn(2, FEATURES, 4), torch.arange(4.0).expand(2, max(net.spatial_dims, 1), 4), mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 9, "spatial_dims": 2}, "slots fill up a chain of slices"),
        ({"slots": 9, "spatial_dims": 1, "spacing": True}, "slots fill up a chain of slices"),
        ({"feature_weights": True}, "feature_weights weigh neighbours: give spatial_dims"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MILNetwork(Features(4), GatedAttentionPool(4, 3), nn.Linear(4, 1), **options)


def test_more_instances_than_slots_are_refused() -> None:
    net = MILNetwork(Features(4), GatedAttentionPool(4, 3), nn.Linear(4, 1), slots=57)
    with pytest.raises(ValueError, match="58 instances for a network of 57 slots"):
        net(torch.randn(1, 4, 58))


@pytest.mark.parametrize(("classes", "several_labels"), [(1, False), (3, False), (3, True)])
def test_a_head_of_any_number_of_classes_learns(classes: int, several_labels: bool) -> None:
    """One logit and several labels by binary cross-entropy, several classes by cross-entropy."""
    torch.manual_seed(0)
    net = MILNetwork(Features(4), SmoothAttentionPool(4, 3), nn.Linear(4, classes), spatial_dims=1)
    prototypes = 3 * torch.randn(max(classes, 2), 4)
    bags_of = torch.arange(30) % max(classes, 2)
    x = prototypes[bags_of][:, :, None] + torch.randn(30, 4, 6)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    label = torch.nn.functional.one_hot(bags_of, 3).float() if several_labels else bags_of[:, None].float()
    for _ in range(60):
        optimizer.zero_grad()
        SmoothMILLoss(alpha=0)(net(x), label).backward()
        optimizer.step()
    logits = net.eval()(x)
    called = (logits[:, 0] > 0).long() if classes == 1 else logits.argmax(dim=1)
    assert (called == bags_of).float().mean() > 0.9


def test_patches_without_coords_are_refused() -> None:
    with pytest.raises(ValueError, match="patches need coords in units of the patch pitch"):
        network("smooth early, lattice")(torch.randn(1, FEATURES, 3))


def test_coords_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="coords hold 1 numbers per instance, the network wants 2"):
        network("smooth early, lattice")(torch.randn(1, FEATURES, 3), torch.zeros(1, 1, 3))


def test_an_unknown_number_of_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="spatial_dims is 3"):
        MILNetwork(FeatureProjection(2, 2), nn.Identity(), nn.Identity(), spatial_dims=3)


def test_a_smooth_network_has_smoother_scores() -> None:
    """The whole point: the same weights, more alpha, less difference between neighbours."""
    torch.manual_seed(0)
    encoder, head = FeatureProjection(FEATURES, 8), nn.Linear(8, 1)
    x = torch.randn(1, FEATURES, 300)
    roughness = []
    for alpha in (0.05, 0.5, 0.95):
        torch.manual_seed(1)
        net = MILNetwork(encoder, SmoothAttentionPool(8, 5, alpha=alpha, steps=200), head, spatial_dims=1).eval()
        f = net.predict(x).scores[0, 0].detach()
        roughness.append(float(f.diff().square().sum() / f.var()))
    assert all(more > less for more, less in pairwise(roughness))
