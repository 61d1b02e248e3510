# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scripts.networks.graph import build_graph, no_graph
from scripts.networks.pooling import (
    AttentionPool,
    GatedAttentionPool,
    InstancePool,
    MaxPool,
    MeanPool,
    SmoothAttentionPool,
    folded,
    masked_softmax,
)
from tests.networks.compositions import FEATURES, bags


def test_mean_and_max_against_torch() -> None:
    x, mask = torch.randn(2, 5, 9), torch.ones(2, 1, 9)
    torch.testing.assert_close(MeanPool()(x, mask, no_graph(mask)).embedding, x.mean(dim=2))
    pooled = MaxPool()(x, mask, no_graph(mask))
    torch.testing.assert_close(pooled.embedding, x.amax(dim=2))
    wins = torch.nn.functional.one_hot(x.argmax(dim=2), 9).float().mean(dim=1, keepdim=True)
    torch.testing.assert_close(pooled.attention, wins)


def test_padding_never_counts() -> None:
    mask = torch.tensor([[[1.0, 1.0, 0.0]]])
    x = torch.tensor([[[-3.0, -1.0, 100.0]]])
    assert MaxPool()(x, mask, no_graph(mask)).embedding.item() == -1
    assert MeanPool()(x, mask, no_graph(mask)).embedding.item() == -2
    assert masked_softmax(x, mask)[0, 0, 2] == 0


def test_attention_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(1, 4, 7), torch.ones(1, 1, 7)
    pool = GatedAttentionPool(4, 3, bias=False)
    v, u, w = pool.project.weight, pool.gate.weight, pool.weigh.weight[0]
    f = torch.stack([w @ (torch.tanh(v @ h) * torch.sigmoid(u @ h)) for h in x[0].t()])
    a = f.exp() / f.exp().sum()
    got = pool(x, mask, no_graph(mask))
    torch.testing.assert_close(got.scores[0, 0], f)
    torch.testing.assert_close(got.attention[0, 0], a)
    torch.testing.assert_close(got.embedding[0], (a * x[0]).sum(dim=1))

    plain = AttentionPool(4, 3)
    f = torch.stack(
        [plain.weigh.weight[0] @ torch.tanh(plain.project.weight @ h + plain.project.bias) for h in x[0].t()]
    )
    torch.testing.assert_close(plain(x, mask, no_graph(mask)).scores[0, 0], f)


@pytest.mark.parametrize("placement", ["early", "mid", "late"])
@pytest.mark.parametrize("spatial_dims", [1, 2])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_smooth_attention_is_the_paper_written_out(data: st.DataObject, spatial_dims: int, placement: str) -> None:
    """Early really smooths all D columns here; the pool must give the same without doing so."""
    features, coords = data.draw(bags(spatial_dims))
    x, mask = features[None].double(), torch.ones(1, 1, features.shape[1]).double()
    graph = build_graph(coords[None])
    torch.manual_seed(0)
    pool = SmoothAttentionPool(FEATURES, 5, placement, alpha=0.8).double()
    sm, w, b, v = pool.smooth, pool.project.weight, pool.project.bias[:, None], pool.weigh.weight
    pooled_from = x
    if placement == "early":
        pooled_from = sm(x, graph)
        f = v @ torch.tanh(w @ pooled_from + b)
    elif placement == "mid":
        f = v @ torch.tanh(sm(w @ x + b, graph))
    else:
        f = sm(v @ torch.tanh(w @ x + b), graph)
    z = pooled_from @ torch.softmax(f, dim=2).transpose(1, 2)
    got = pool(x, mask, graph)
    torch.testing.assert_close(got.scores, f)
    torch.testing.assert_close(got.embedding, z[..., 0])


def test_instance_level_is_the_largest_or_the_mean_probability() -> None:
    """Ilse's instance+max and instance+mean, written out; the second logit is another class, for itself."""
    x, mask = torch.randn(2, 4, 6), torch.ones(2, 1, 6)
    mask[1, 0, 4:] = 0
    for pool in ("max", "mean"):
        aggregator = InstancePool(4, classes=2, pool=pool)
        got = aggregator(x, mask, no_graph(mask))
        for b, n in ((0, 6), (1, 4)):
            p = torch.sigmoid(aggregator.classify.weight @ x[b, :, :n] + aggregator.classify.bias[:, None])  # [2, n]
            wanted = p.amax(dim=1) if pool == "max" else p.mean(dim=1)
            torch.testing.assert_close(torch.sigmoid(got.embedding[b]), wanted)
            torch.testing.assert_close(torch.sigmoid(got.scores[b, :, :n]), p)


def test_the_mean_probability_of_certain_instances_is_finite() -> None:
    aggregator = InstancePool(1, pool="mean")
    torch.nn.init.ones_(aggregator.classify.weight)
    torch.nn.init.zeros_(aggregator.classify.bias)
    mask = torch.ones(1, 1, 2)
    got = aggregator(torch.tensor([[[200.0, 200.0]]]), mask, no_graph(mask))
    assert got.embedding.item() == pytest.approx(200)


def test_an_unknown_instance_pool_is_an_error() -> None:
    with pytest.raises(ValueError, match="pool is 'sum': 'max' or 'mean' is wanted"):
        InstancePool(4, pool="sum")


@pytest.mark.parametrize(
    ("placement", "normalised"), [("early", {"project", "weigh"}), ("mid", {"weigh"}), ("late", set())]
)
def test_spectral_norm_is_on_the_layers_behind_the_smooth_operator(placement: str, normalised: set[str]) -> None:
    torch.manual_seed(0)
    pool = SmoothAttentionPool(6, 5, placement, spectral_norm=True).train()
    mask = torch.ones(1, 1, 4)
    graph = build_graph(torch.arange(4.0).view(1, 1, 4))
    for _ in range(30):  # each forward pass in training comes closer to the largest singular value
        pool(torch.randn(1, 6, 4), mask, graph)
    pool.eval()
    largest = {
        name: float(torch.linalg.matrix_norm(getattr(pool, name).weight.detach(), 2)) for name in ("project", "weigh")
    }
    assert {name for name, value in largest.items() if value == pytest.approx(1, abs=1e-3)} == normalised
    x = torch.randn(1, 6, 4)
    plain = folded(pool)
    torch.testing.assert_close(plain(x, mask, graph).embedding, pool(x, mask, graph).embedding)
    assert {name for name, _ in plain.named_parameters()} == {
        "project.weight", "project.bias", "weigh.weight", "smooth.alpha_logit",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("activation", "function"), [("relu", torch.relu), ("gelu", torch.nn.functional.gelu), ("tanh", torch.tanh)]
)
def test_the_activation_is_the_one_named(activation: str, function: Callable[[Tensor], Tensor]) -> None:
    pool = SmoothAttentionPool(3, 5, "late", activation=activation)
    x, mask = torch.randn(1, 3, 1), torch.ones(1, 1, 1)  # one instance: Sm is the identity
    f = pool.weigh.weight @ function(pool.project.weight @ x[0] + pool.project.bias[:, None])
    torch.testing.assert_close(pool(x, mask, build_graph(torch.zeros(1, 1, 1))).scores[0], f)


def test_an_unknown_activation_is_an_error() -> None:
    with pytest.raises(ValueError, match="activation is 'elu': one of tanh, relu, gelu is wanted"):
        SmoothAttentionPool(4, activation="elu")


def test_an_unknown_placement_is_an_error() -> None:
    with pytest.raises(ValueError, match="'early', 'mid' or 'late'"):
        SmoothAttentionPool(4, placement="before")
