# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Aggregators against their formulas, written out; those of smooth attention are in tests/weights/test_torchmil.py."""

from typing import Any

import pytest
import torch

from scripts.networks.graph import build_graph, no_graph
from scripts.networks.pooling import (
    AttentionPool,
    GatedAttentionPool,
    InstancePool,
    MaxPool,
    MeanPool,
    SmoothAttentionPool,
)


def test_mean_and_max_are_those_of_torch_without_padding() -> None:
    mask, x = torch.ones(2, 1, 10), torch.randn(2, 5, 10) - 3
    mask[..., 9], x[..., 9] = 0, 100.0
    torch.testing.assert_close(MeanPool()(x, mask, no_graph(mask)).embedding, x[..., :9].mean(dim=2))
    pooled = MaxPool()(x, mask, no_graph(mask))
    torch.testing.assert_close(pooled.embedding, x[..., :9].amax(dim=2))
    wins = torch.nn.functional.one_hot(x[..., :9].argmax(dim=2), 10).float().mean(dim=1, keepdim=True)
    torch.testing.assert_close(pooled.attention, wins)


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
    f = torch.stack([plain.weigh.weight[0] @ torch.tanh(plain.project(h)) for h in x[0].t()])
    torch.testing.assert_close(plain(x, mask, no_graph(mask)).scores[0, 0], f)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_instance_level_is_the_largest_or_the_mean_probability(pool: str) -> None:
    """Ilse's instance+max and instance+mean, written out; the second logit is another class, for itself."""
    x, mask = torch.randn(2, 4, 6), torch.tensor([[[1.0] * 6], [[1.0] * 4 + [0.0] * 2]])
    aggregator = InstancePool(4, classes=2, pool=pool)
    got = aggregator(x, mask, no_graph(mask))
    for b, n in ((0, 6), (1, 4)):
        p = torch.sigmoid(aggregator.classify.weight @ x[b, :, :n] + aggregator.classify.bias[:, None])  # [2, n]
        torch.testing.assert_close(torch.sigmoid(got.embedding[b]), p.amax(dim=1) if pool == "max" else p.mean(dim=1))
        torch.testing.assert_close(torch.sigmoid(got.scores[b, :, :n]), p)


def test_the_mean_probability_of_certain_instances_is_finite() -> None:
    aggregator, mask = InstancePool(1, pool="mean"), torch.ones(1, 1, 2)
    aggregator.load_state_dict({"classify.weight": torch.ones(1, 1), "classify.bias": torch.zeros(1)})
    assert aggregator(torch.tensor([[[200.0, 200.0]]]), mask, no_graph(mask)).embedding.item() == pytest.approx(200)


@pytest.mark.parametrize(
    ("placement", "normalised"), [("early", {"project", "weigh"}), ("mid", {"weigh"}), ("late", set())]
)
def test_spectral_norm_is_on_the_layers_behind_the_smooth_operator(placement: str, normalised: set[str]) -> None:
    torch.manual_seed(0)
    pool = SmoothAttentionPool(6, 5, placement, spectral_norm=True).train()
    x, mask, graph = torch.randn(1, 6, 4), torch.ones(1, 1, 4), build_graph(torch.arange(4.0).view(1, 1, 4))
    for _ in range(30):  # each forward pass in training comes closer to the largest singular value
        pool(x, mask, graph)
    largest = {name: torch.linalg.matrix_norm(getattr(pool, name).weight.detach(), 2) for name in ("project", "weigh")}
    assert {name for name, value in largest.items() if float(value) == pytest.approx(1, abs=1e-3)} == normalised


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (InstancePool, {"pool": "sum"}, "pool is 'sum': 'max' or 'mean'"),
        (SmoothAttentionPool, {"activation": "elu"}, "activation is 'elu': one of tanh, relu, gelu"),
        (SmoothAttentionPool, {"placement": "before"}, "'early', 'mid' or 'late'"),
    ],
)
def test_unknown_options_are_refused_with_those_there_are(kind: Any, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(4, **options)
