# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""From the instances of a bag to one embedding: mean, max, attention, gated attention, smooth attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scripts.networks.graph import Graph
from scripts.networks.smooth import SmoothOperator


class Pooled(NamedTuple):
    embedding: Tensor  # [B, D] of the bag
    scores: Tensor  # [B, 1, N] of each instance, before the softmax
    attention: Tensor  # [B, 1, N] sums to 1 over the real instances


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the real instances; padding gets 0."""
    return torch.softmax(scores.masked_fill(mask < 0.5, float("-inf")), dim=2)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """z = X s. x: [B, D, N], weights: [B, 1, N]."""
    return torch.matmul(x, weights.transpose(1, 2)).squeeze(2)  # [B, D]


class MeanPool(nn.Module):
    """Every instance counts the same; it ranks none."""

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        scores = torch.zeros_like(mask)  # [B, 1, N]
        attention = masked_softmax(scores, mask)  # [B, 1, N]
        return Pooled(weighted_sum(x, attention), scores, attention)


class MaxPool(nn.Module):
    """The largest value of each feature; an instance's attention is its share of these values."""

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        real = mask > 0.5  # [B, 1, N]
        embedding = x.masked_fill(~real, float("-inf")).amax(dim=2)  # [B, D]
        wins = ((x == embedding.unsqueeze(2)) & real).to(x.dtype)  # [B, D, N]
        share = (wins / wins.sum(dim=2, keepdim=True)).mean(dim=1, keepdim=True)  # [B, 1, N], a tie is shared
        return Pooled(embedding, share, share)


class AttentionPool(nn.Module):
    """s = softmax(w · tanh(V h)), z = Σ s h (Ilse et al., 2018)."""

    def __init__(self, in_features: int, hidden_features: int = 128, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, hidden_features, bias=bias)
        self.weigh = nn.Linear(hidden_features, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        h = x.transpose(1, 2)  # [B, N, D]
        f = self.weigh(torch.tanh(self.project(h))).transpose(1, 2)  # [B, 1, N]
        s = masked_softmax(f, mask)  # [B, 1, N]
        return Pooled(weighted_sum(x, s), f, s)


class GatedAttentionPool(nn.Module):
    """s = softmax(w · (tanh(V h) ⊙ sigmoid(U h))), z = Σ s h (Ilse et al., 2018)."""

    def __init__(self, in_features: int, hidden_features: int = 128, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, hidden_features, bias=bias)
        self.gate = nn.Linear(in_features, hidden_features, bias=bias)
        self.weigh = nn.Linear(hidden_features, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        h = x.transpose(1, 2)  # [B, N, D]
        f = self.weigh(torch.tanh(self.project(h)) * torch.sigmoid(self.gate(h))).transpose(1, 2)  # [B, 1, N]
        s = masked_softmax(f, mask)  # [B, 1, N]
        return Pooled(weighted_sum(x, s), f, s)


class SmoothAttentionPool(nn.Module):
    """Attention with the smooth operator before the projection (early), before the activation (mid) or after f (late).

    Sm is linear and symmetric: Sm(X) W = Sm(X W) and Sm(X)ᵀ s = Xᵀ Sm(s), so "early" never smooths D columns.

    Args:
        placement: "early" (the paper's default), "mid" or "late".
        alpha: of the smooth operator: between 0 and 1, or "trainable".
        steps: of the smooth operator.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int = 128,
        placement: str = "early",
        alpha: float | str = "trainable",
        steps: int = 10,
    ) -> None:
        super().__init__()
        if placement not in ("early", "mid", "late"):
            raise ValueError(f"placement is {placement!r}: 'early', 'mid' or 'late' is wanted")
        self.placement = placement
        self.project = nn.Linear(in_features, hidden_features)
        self.weigh = nn.Linear(hidden_features, 1, bias=False)
        self.smooth = SmoothOperator(alpha, steps)

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        xw = torch.matmul(self.project.weight, x)  # [B, A, N]
        b = self.project.bias.unsqueeze(1)  # [A, 1]
        if self.placement == "early":
            u = self.smooth(xw, graph) + b  # [B, A, N]
        elif self.placement == "mid":
            u = self.smooth(xw + b, graph)
        else:
            u = xw + b
        f = torch.matmul(self.weigh.weight, torch.tanh(u))  # [B, 1, N]
        if self.placement == "late":
            f = self.smooth(f, graph)
        s = masked_softmax(f, mask)  # [B, 1, N]
        if self.placement == "early":
            return Pooled(weighted_sum(x, self.smooth(s, graph)), f, s)
        return Pooled(weighted_sum(x, s), f, s)
