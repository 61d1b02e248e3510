# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The smooth transformer against its formula; its invariants are among those of test_mil.py."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from scripts.networks import MeanPool, SmoothAttentionPool, SmoothTransformer, build_graph
from scripts.networks import transformer as module
from scripts.networks.transformer import SmoothTransformerLayer
from tests.networks.compositions import close

COORDS = torch.tensor([[[0.0, 1, 2, 0, 1], [0.0, 0, 0, 1, 1]]])


def written_out(layer: SmoothTransformerLayer, x: Tensor) -> Tensor:
    """Z = X + Sm(MHSA(LN(X))), Y = Z + MLP(LN(Z)), with every head's softmax in full. x: [N, D]."""
    d = x.shape[1]
    q, k, v = (layer.norm1(x) @ layer.qkv.weight.t()).split(d, dim=1)
    width = d // layer.heads
    heads = []
    for head in range(layer.heads):
        own = slice(head * width, (head + 1) * width)
        heads.append(torch.softmax(q[:, own] @ k[:, own].t() / width**0.5, dim=1) @ v[:, own])
    attended = torch.cat(heads, dim=1)  # [N, D]
    z = x + layer.smooth(attended.t()[None], build_graph(COORDS))[0].t()
    y: Tensor = z + layer.mlp(layer.norm2(z))
    return y


@pytest.mark.parametrize("add_input", [False, True])
def test_layers_are_the_formula_of_the_paper(add_input: bool) -> None:
    torch.manual_seed(0)
    transformer = SmoothTransformer(8, MeanPool(), heads=2, layers=2, alpha=0.8, add_input=add_input)
    x = torch.randn(1, 8, 5)
    y = x[0].t()
    for layer in transformer.layers:
        assert isinstance(layer, SmoothTransformerLayer)
        y = written_out(layer, y) + (x[0].t() if add_input else 0)
    wanted = torch.nn.functional.layer_norm(y, (8,), transformer.norm.weight, transformer.norm.bias)
    close(transformer(x, torch.ones(1, 1, 5), build_graph(COORDS)).embedding[0], wanted.mean(dim=0))


def test_no_mask_of_n_by_n_is_made() -> None:
    transformer = SmoothTransformer(8, MeanPool(), heads=2, layers=1)
    for last, shape in ((0.0, (1, 1, 1, 5)), (1.0, None)):  # without padding none at all
        mask = torch.tensor([[[1.0, 1, 1, 1, last]]])
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
