# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scripts.networks import (
    AttentionPool,
    FeatureProjection,
    GatedAttentionPool,
    InstancePool,
    MaxPool,
    MeanPool,
    MILNetwork,
    SmoothAttentionPool,
)
from scripts.networks.evidence import is_linear
from tests.networks.compositions import FEATURES, NETWORKS, bags, close, dims_of, network, padded, thorough

LINEAR = [name for name in NETWORKS if name != "max" and not name.startswith("instance")]
# networks in which no instance knows of another before the pool: without one the others say what they said
ALONE = ["mean", "max", "instance max, three classes", "instance mean", "attention, three classes", "gated"]


def behind(head: nn.Module, pool: nn.Module | None = None) -> MILNetwork:
    """A network with this head, in evaluation."""
    torch.manual_seed(1)
    return MILNetwork(FeatureProjection(FEATURES, 8), pool or AttentionPool(8, 5), head).eval()


def of_nothing(net: Any) -> Tensor:
    """The bias: what the head says of an embedding in which nothing is."""
    bias: Tensor = net.fine.classify.bias if hasattr(net, "fine") else net.head(torch.zeros(8))
    return bias


@pytest.mark.parametrize("name", LINEAR)
@thorough
@given(data=st.data())
def test_the_shares_of_a_bag_sum_to_its_logit_less_the_bias(data: st.DataObject, name: str) -> None:
    net = network(name)
    image, coords, mask = padded([data.draw(bags(dims_of(net))) for _ in range(2)], spare=1)
    found = net.predict(image, coords, mask)
    torch.testing.assert_close(found.evidence.sum(dim=2), found.logits - of_nothing(net), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALONE)
@thorough
@given(data=st.data())
def test_what_an_instance_changes_is_seen_by_leaving_it_out(data: st.DataObject, name: str) -> None:
    net = network(name)
    x, _ = data.draw(bags(1))
    every = net.predict(x[None])
    for i in range(x.shape[1]):
        others = torch.cat([x[:, :i], x[:, i + 1 :]], dim=1)
        alone = net.predict(others[None]).logits if others.shape[1] else net.head(torch.zeros(1, 8))
        if name.startswith("instance") and not others.shape[1]:
            alone = torch.zeros_like(every.logits)
        close(every.leave_one_out[..., i], every.logits - alone)


@pytest.mark.parametrize("name", ["smooth early, chain", "smooth mid, chain", "smooth late, lattice"])
@thorough
@given(data=st.data())
def test_of_a_smooth_network_the_weight_is_left_out_and_the_others_share_it(data: st.DataObject, name: str) -> None:
    net = network(name)
    x, coords = data.draw(bags(dims_of(net)))
    mask = torch.ones(1, 1, x.shape[1])
    h = net.encoder(x[None], mask)[0].double()  # [D, N]
    pool = net.aggregator
    w = pool.attend(pool.columns(h[None].float()), mask, net.graph(coords[None], mask)).weights[0, 0].double()  # [N]
    found = net.predict(x[None], coords[None])
    for i in range(len(w)):
        kept = torch.arange(len(w)) != i
        z = h[:, kept] @ w[kept] * w.sum() / w[kept].sum() if kept.any() else torch.zeros(8)
        close(found.leave_one_out[..., i], found.logits - net.head(z.float()))


def test_the_own_logit_is_what_the_network_says_of_a_bag_of_that_instance() -> None:
    for net in (behind(nn.Linear(8, 3)), behind(nn.Sequential(nn.Dropout(), nn.Linear(8, 4), nn.Linear(4, 1)))):
        x = torch.randn(FEATURES, 7)
        found = net.predict(x[None])
        assert found.instance_logits is not None
        for i in range(7):
            close(found.instance_logits[..., i], net.predict(x[None, :, i : i + 1]).logits)


@pytest.mark.parametrize("pool", [AttentionPool(8, 5), GatedAttentionPool(8, 5), MeanPool(), MaxPool()])
def test_behind_an_activation_only_leaving_out_tells_what_an_instance_adds(pool: nn.Module) -> None:
    net = behind(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)), pool)
    x = 5 * torch.randn(FEATURES, 9)
    found = net.predict(x[None])
    assert found.evidence is None
    assert found.instance_logits is None
    assert found.leave_one_out is not None
    assert found.leave_one_out.abs().max() > 0.01
    for i in range(9):
        others = torch.cat([x[:, :i], x[:, i + 1 :]], dim=1)
        close(found.leave_one_out[..., i], found.logits - net.predict(others[None]).logits)


@pytest.mark.parametrize("head", [nn.Linear(8, 1), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))])
def test_an_instance_with_nearly_all_attention_leaves_what_the_others_say(head: nn.Module) -> None:
    """In single precision 1 - s is then nothing but rounding."""
    net = behind(head)
    x = torch.randn(FEATURES, 6)
    with torch.no_grad():
        net.aggregator.weigh.weight *= 200 / net.predict(x[None]).scores.abs().max()  # type: ignore[operator, union-attr]
    found = net.predict(x[None])
    top = int(found.attention.argmax())
    assert found.attention.max() > 1 - 1e-5
    assert found.leave_one_out is not None
    others = torch.cat([x[:, :top], x[:, top + 1 :]], dim=1)
    close(found.leave_one_out[..., top], found.logits - net.predict(others[None]).logits)


def test_training_asks_for_nothing_of_this() -> None:
    found = network("gated").train().predict(torch.randn(1, FEATURES, 4))
    assert found.evidence is found.instance_logits is found.leave_one_out is None


def test_a_class_of_instances_gets_its_own_scores_as_logits() -> None:
    net = behind(nn.Identity(), InstancePool(8, 3))
    found = net.predict(torch.randn(1, FEATURES, 4))
    assert found.instance_logits is found.scores
    assert found.evidence is None


@pytest.mark.parametrize(
    ("head", "linear"),
    [
        (nn.Linear(2, 1), True),
        (nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(2, 2), nn.Identity())), True),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), False),
        (nn.LayerNorm(2), False),
    ],
)
def test_a_head_is_linear_if_all_its_layers_are(head: nn.Module, linear: bool) -> None:
    assert is_linear(head) is linear


def test_a_smooth_pool_shares_by_the_smoothed_attention() -> None:
    net = MILNetwork(FeatureProjection(FEATURES, 8), SmoothAttentionPool(8, 5, alpha=0.9), nn.Linear(8, 1), 1).eval()
    x = torch.randn(1, FEATURES, 6)
    found, h = net.predict(x), net.encoder(x, torch.ones(1, 1, 6))
    assert found.evidence is not None
    smoothed = net.aggregator.smooth(found.attention, found.graph)  # type: ignore[operator]
    close(found.evidence, smoothed * (net.head.weight @ h))


@pytest.mark.parametrize("values", [[-38.0, 10.0], [-50.0, 40.0, -45.0]])
def test_a_sure_instance_leaves_finite_what_the_others_say(values: list[float]) -> None:
    pool, mask = InstancePool(1, pool="mean").double(), torch.ones(1, 1, len(values)).double()
    f = torch.tensor(values).double()[None, None]
    for i in range(len(values)):
        others = torch.cat([f[..., :i], f[..., i + 1 :]], dim=2)
        wanted = pool.pool(others.transpose(1, 2), mask[..., 1:]).embedding
        torch.testing.assert_close(pool.without(f, mask)[..., i].double(), wanted, atol=1e-5, rtol=1e-5)
