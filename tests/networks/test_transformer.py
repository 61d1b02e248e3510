# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The smooth transformer; tests/weights/test_torchmil.py has its formula, test_mil.py its invariants."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from scripts.networks import MeanPool, SmoothAttentionPool, SmoothTransformer, build_graph
from scripts.networks import transformer as module

COORDS = torch.tensor([[[0.0, 1, 2, 0, 1], [0.0, 0, 0, 1, 1]]])


def test_no_mask_of_n_by_n_is_made() -> None:
    transformer = SmoothTransformer(8, MeanPool(), heads=2, layers=1)
    padded = torch.tensor([[[1.0, 1, 1, 1, 0]]])
    for mask, shape in ((padded, (1, 1, 1, 5)), (None, None)):  # without padding none at all
        with patch.object(module, "scaled_dot_product_attention", wraps=scaled_dot_product_attention) as attention:
            transformer(torch.randn(1, 8, 5), mask, build_graph(COORDS, mask))
        given = attention.call_args.kwargs["attn_mask"]
        assert (None if given is None else given.shape) == shape


def test_each_layer_learns_an_alpha_of_its_own() -> None:
    transformer = SmoothTransformer(8, SmoothAttentionPool(8, 4), heads=2, layers=3)
    transformer(torch.randn(1, 8, 5), torch.ones(1, 1, 5), build_graph(COORDS)).embedding.square().sum().backward()
    alphas = [p.grad for name, p in transformer.named_parameters() if name.endswith("alpha_logit")]
    assert len(alphas) == 4  # and one in the pool
    assert all(grad is not None and grad != 0 for grad in alphas)


def test_heads_must_share_the_features() -> None:
    with pytest.raises(ValueError, match="10 features cannot be shared among 4 heads"):
        SmoothTransformer(10, MeanPool(), heads=4)


def test_landmarks_see_the_bag_and_instances_see_the_landmarks() -> None:
    """By the formula: softmax(Q Lᵀ) softmax(L Kᵀ) V without padding."""
    transformer: Any = SmoothTransformer(8, MeanPool(), heads=2, layers=1, landmarks=3).double()
    layer, x = transformer.layers[0], torch.randn(1, 5, 8, dtype=torch.double)
    real = torch.tensor([True, True, True, True, False]).view(1, 1, 1, 5)
    q, k, v = layer.qkv(x)[0].view(5, 3, 2, 4).permute(1, 2, 0, 3)  # [H, N, D/H] each
    seen = (layer.landmarks @ k[:, :4].mT / 2).softmax(-1) @ v[:, :4]  # [H, L, D/H]
    wanted = (q @ layer.landmarks.mT / 2).softmax(-1) @ seen  # [H, N, D/H]
    torch.testing.assert_close(layer.self_attention(x, real)[0], wanted.transpose(0, 1).reshape(5, 8))


def test_landmarks_learn_and_none_are_refused() -> None:
    transformer: Any = SmoothTransformer(8, SmoothAttentionPool(8, 4), heads=2, landmarks=3)
    transformer(torch.randn(1, 8, 5), torch.ones(1, 1, 5), build_graph(COORDS)).embedding.square().sum().backward()
    assert all(bool(layer.landmarks.grad.abs().sum() > 0) for layer in transformer.layers)
    with pytest.raises(ValueError, match="0 landmarks see nothing: give 1 or more"):
        SmoothTransformer(8, MeanPool(), heads=2, landmarks=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_first_landmarks_tell_instances_apart_about_as_full_attention_does(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 500, 128)
    spread = {}
    for landmarks in (None, 64):
        layer: Any = SmoothTransformer(128, MeanPool(), heads=4, layers=1, landmarks=landmarks).layers[0]
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            attended = layer.self_attention(layer.norm1(x), None)
        spread[landmarks] = float(attended.float().std(dim=1).mean())
    assert 0.3 < spread[64] / spread[None] < 3
