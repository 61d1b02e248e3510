# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The smooth transformer; tests/weights/test_torchmil.py has its formula, test_mil.py its invariants."""

from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from scripts.networks import MeanPool, SmoothAttentionPool, SmoothTransformer, build_graph
from scripts.networks import transformer as module

COORDS = torch.tensor([[[0.0, 1, 2, 0, 1], [0.0, 0, 0, 1, 1]]])


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
