# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The invariants that every composition keeps, and the options of MILNetwork."""

import functools
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scripts.losses import BagCrossEntropy, SmoothMILLoss
from scripts.networks import (
    HMIL,
    AttentionPool,
    Features,
    GatedAttentionPool,
    MILNetwork,
    SliceCNN,
    SmoothAttentionPool,
    SmoothTransformer,
)
from tests.networks.compositions import (
    FEATURES,
    NETWORKS,
    OF_INSTANCES,
    as_on_an_accelerator,
    bags,
    close,
    dims_of,
    network,
    outputs,
    padded,
    thorough,
)

each_network = pytest.mark.parametrize("name", NETWORKS)


@each_network
@thorough
@given(data=st.data())
def test_a_batch_is_its_bags_one_by_one_and_padding_changes_nothing(data: st.DataObject, name: str) -> None:
    net = network(name)
    several = [data.draw(bags(dims_of(net))) for _ in range(3)]
    together = net.predict(*padded(several, spare=2))
    for b, (x, coords) in enumerate(several):
        n = x.shape[1]
        alone = outputs(net.predict(x[None], coords[None]), n)
        for field, got in outputs(together, n).items():
            close(got[b], alone[field][0])
        in_padding = together.attention[b, :, n:].sum()
        assert (in_padding == 0) == (getattr(net, "slots", None) is None)  # a slot is real, full or not
        close(together.attention[b].sum(dim=1), torch.ones(len(together.attention[b])))


@each_network
@thorough
@given(data=st.data())
def test_permuting_instances_permutes_scores_and_keeps_logits(data: st.DataObject, name: str) -> None:
    net = network(name)
    x, coords = data.draw(bags(dims_of(net)))
    n = x.shape[1]
    order = torch.tensor(data.draw(st.permutations(range(n))))
    before = outputs(net.predict(x[None], coords[None]), n)
    for field, after in outputs(net.predict(x[None][..., order], coords[None][..., order]), n).items():
        close(after, before[field][..., order] if field.endswith(OF_INSTANCES) else before[field])


@functools.cache
def scripted(name: str) -> tuple[Any, Any]:
    net = network(name)
    parts, keys = list(net.modules()), list(net.state_dict())
    script = torch.jit.script(net)
    assert all(one is other for one, other in zip(net.modules(), parts, strict=True))  # it stays as it was
    assert list(net.state_dict()) == keys
    return net, script


@each_network
@thorough
@given(data=st.data())
def test_scripted_is_eager(data: st.DataObject, name: str) -> None:
    net, script = scripted(name)
    batch = padded([data.draw(bags(dims_of(net))) for _ in range(2)])
    close(script(*batch), net(*batch))
    close(script.predict(*batch).scores, net.predict(*batch).scores)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["max", "gated, chain", "smooth early, spectral norm", "smooth transformer, lattice"])
def test_traced_is_eager(name: str) -> None:
    net = network(name)
    bag = (torch.randn(1, FEATURES, 5), torch.arange(5.0).expand(1, dims_of(net), 5), torch.ones(1, 1, 5))
    close(torch.jit.trace(net, bag)(*bag), net(*bag))


@each_network
def test_training_returns_the_prediction_and_evaluation_its_logits(name: str) -> None:
    net = network(name)
    assert net(torch.randn(1, FEATURES, 1)).isfinite().all()  # one instance is a bag, and needs no coords and mask
    x, coords = torch.randn(1, FEATURES, 4), torch.arange(4.0).expand(1, dims_of(net), 4)
    in_training = net.train()(x, coords)
    in_training.logits.sum().backward()
    assert any(p.grad is not None for p in net.parameters())
    close(net.eval()(x, coords), in_training.logits)


@each_network
def test_a_bag_without_a_real_instance_is_refused(name: str) -> None:
    """In a batch its NaN would reach every weight."""
    net, mask = network(name), torch.ones(2, 1, 4)
    mask[1] = 0
    with pytest.raises(ValueError, match="no real instance"):
        net(torch.randn(2, FEATURES, 4), torch.arange(4.0).expand(2, dims_of(net), 4), mask)


@each_network
def test_what_is_not_asked_on_an_accelerator_changes_nothing(name: str) -> None:
    """Answers and gradients, of padded bags whose mask lies there."""
    net = network(name)
    several = [(torch.randn(FEATURES, n), torch.randperm(n).float().expand(dims_of(net), n)) for n in (5, 2)]
    image, coords, mask = padded(several, spare=1)

    def found() -> list[Tensor]:
        told = net.eval().predict(image, coords, mask)
        net.zero_grad()
        net.train()(image, coords, mask).logits.square().sum().backward()
        return [*outputs(told, image.shape[2]).values(), *(p.grad for p in net.parameters() if p.grad is not None)]

    wanted = found()
    with as_on_an_accelerator():
        for got, known in zip(found(), wanted, strict=True):
            torch.testing.assert_close(got, known, rtol=1e-5, atol=1e-6)


class Launches(TorchDispatchMode):
    """Counts the operations on a device that has no values, where asking for one is an error: of a GPU each waits."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
        self.count += any(each.is_meta for each in tensors) and not func.is_view
        return out


def of_head(pool: nn.Module, spatial_dims: int) -> MILNetwork:
    return MILNetwork(Features(64), pool, nn.Linear(64, 1), spatial_dims)


def of_slices() -> MILNetwork:
    encoder = SliceCNN(64, channels=(4, 4, 4))
    d = encoder.out_features
    return MILNetwork(encoder, GatedAttentionPool(d), nn.Linear(d, 1), spatial_dims=1)


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: of_head(AttentionPool(64), 0), 40),
        (lambda: of_head(SmoothAttentionPool(64), 2), 210),
        (lambda: of_head(SmoothAttentionPool(64, placement="mid"), 2), 170),
        (lambda: of_head(SmoothAttentionPool(64, placement="late", mode="exact", alpha=0.9), 2), 400),
        (lambda: of_head(SmoothAttentionPool(64, mode="exact"), 1), 1100),
        (lambda: of_head(SmoothTransformer(64, SmoothAttentionPool(64)), 2), 495),
        (lambda: HMIL(64, {"benign": ["a"], "malignant": ["b", "c"]}), 120),
        (of_slices, 130),
    ],
    ids=["attention", "early", "mid", "late exact lattice", "exact chain", "SmTAP", "HMIL", "slices"],
)
def test_a_step_on_an_accelerator_never_waits_for_it(make: Any, most: int) -> None:
    """Of bags of which one is padded, coords and mask in the host's memory, with every loss; in evaluation too."""
    net = make().to("meta")
    shape = (2, 3, 64, 64, 5) if isinstance(getattr(net, "encoder", None), SliceCNN) else (2, 64, 5)
    image, coords = torch.randn(shape, device="meta"), torch.randperm(5).float().expand(2, dims_of(net), 5)
    mask = torch.tensor([[[1.0, 1, 1, 1, 1]], [[1.0, 1, 1, 0, 0]]])
    label = torch.zeros(2, 1, device="meta")
    with Launches() as launches:
        prediction = net(image, coords, mask)
        binary_cross_entropy_with_logits(prediction.logits[:, :1], label).backward()
    assert 20 < launches.count <= most
    with torch.no_grad():
        net.eval().predict(image, coords, mask)
        net.predict(image, coords)
    if getattr(net, "spatial_dims", 0):
        for penalty, variant in product(("LS1", "LS2"), ("paper", "released", "scale_free")):
            loss = SmoothMILLoss(0.5, penalty, BagCrossEntropy([1.0, 2.0]), variant)
            loss(net.train()(image, coords, mask), label).backward()
    with pytest.raises(RuntimeError, match="meta"):  # what a test of nothing would let pass
        bool(net.train()(image, coords, mask).logits.sum() > 0)


def test_slices_without_coords_are_taken_in_the_order_given() -> None:
    net, x = network("smooth early, chain"), torch.randn(1, FEATURES, 5)
    close(net(x), net(x, torch.arange(5.0).view(1, 1, 5)))
    assert not torch.allclose(net(x), net(x, torch.tensor([[[0.0, 2.0, 4.0, 1.0, 3.0]]])))


def test_slots_are_zeros_taken_for_real_behind_the_last_slice() -> None:
    """As the bag with zeros behind it in a network without slots; a padded batch too."""
    torch.manual_seed(0)
    slotted = MILNetwork(Features(4), GatedAttentionPool(4, 3), nn.Linear(4, 1), slots=7).eval()
    plain = MILNetwork(slotted.encoder, slotted.aggregator, slotted.head).eval()
    x, mask = torch.randn(2, 4, 5), torch.tensor([[[1.0, 1, 1, 1, 1]], [[1.0, 1, 1, 0, 0]]])
    got, wanted = slotted.predict(x, None, mask), plain.predict(torch.cat([x * mask, torch.zeros(2, 4, 2)], dim=2))
    close(got.logits, wanted.logits)
    close(got.attention, wanted.attention)
    with pytest.raises(ValueError, match="8 instances for a network of 7 slots"):
        slotted(torch.randn(1, 4, 8))
    chain = MILNetwork(Features(4), GatedAttentionPool(4, 3), nn.Linear(4, 1), spatial_dims=1, slots=5)
    graph = chain.predict(torch.randn(1, 4, 3), torch.tensor([[[2.0, 9.0, 4.0]]])).graph
    assert graph.neighbours[0, 1, 1] == 3  # behind the slice at 9
    assert graph.weights.sum() == 2 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 9, "spatial_dims": 2}, "slots fill up a chain"),
        ({"slots": 9, "spatial_dims": 1, "spacing": True}, "slots fill up a chain"),
        ({"feature_weights": True}, "give spatial_dims"),
        ({"spatial_dims": 3}, "spatial_dims is 3"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MILNetwork(Features(4), GatedAttentionPool(4, 3), nn.Linear(4, 1), **options)


def test_patches_need_two_coords() -> None:
    for coords, message in ((None, "units of the patch pitch"), (torch.zeros(1, 1, 3), "wants 2")):
        with pytest.raises(ValueError, match=message):
            network("smooth late, lattice")(torch.randn(1, FEATURES, 3), coords)
