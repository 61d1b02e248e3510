# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""SmTAP of SmMIL (arXiv 2410.03276): smoothed self-attention among all instances, before the attention pool."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from scripts.networks.graph import Graph
from scripts.networks.pooling import Pooled
from scripts.networks.smooth import Adjacency, SmoothOperator, adjacency


class SmoothTransformerLayer(nn.Module):
    """One layer: Z = X + Sm(MHSA(LN(X))), Y = Z + MLP(LN(Z))."""

    landmarks: Optional[Tensor]

    def __init__(
        self,
        features: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
        smooth: SmoothOperator,
        landmarks: Optional[int],
    ) -> None:
        super().__init__()
        self.heads = heads
        # twice a normal deviate: instances come out about as far apart as by attention among all of them
        marks = None if landmarks is None else nn.Parameter(2 * torch.randn(heads, landmarks, features // heads))
        self.register_parameter("landmarks", marks)
        self.norm1 = nn.LayerNorm(features)
        self.qkv = nn.Linear(features, 3 * features, bias=False)
        self.smooth = smooth
        self.norm2 = nn.LayerNorm(features)
        wide = mlp_ratio * features
        self.mlp = nn.Sequential(
            nn.Linear(features, wide), nn.GELU(), nn.Dropout(dropout), nn.Linear(wide, features), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, real: Optional[Tensor], adj: Adjacency) -> Tensor:
        """Return Y [B, N, D] of x [B, N, D]; real: [B, 1, 1, N] or None where all are."""
        attended = self.self_attention(self.norm1(x), real)  # [B, N, D]
        columns = attended.transpose(1, 2)  # [B, D, N]
        smoothed = self.smooth.along(columns, adj, self.smooth.factors(columns, adj.chain))  # [B, D, N]
        z = x + smoothed.transpose(1, 2)  # [B, N, D]
        return z + self.mlp(self.norm2(z))  # [B, N, D]

    def self_attention(self, x: Tensor, real: Optional[Tensor]) -> Tensor:
        """Attend from every instance to every real one, or to what the landmarks see of them. x: [B, N, D]."""
        b, n, d = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        qkv = qkv.contiguous()  # [3, B, H, N, D/H], contiguous rows are faster
        keys, values, landmarks = qkv[1], qkv[2], self.landmarks
        if landmarks is not None:
            marks = landmarks.to(qkv.dtype).expand(b, -1, -1, -1)  # [B, H, L, D/H]
            keys, values = marks, scaled_dot_product_attention(marks, keys, values, attn_mask=real)
            real = None
        y = scaled_dot_product_attention(qkv[0], keys, values, attn_mask=real)  # [B, H, N, D/H], no N×N kept
        return y.transpose(1, 2).reshape(b, n, d)


class SmoothTransformer(nn.Module):
    """Layers of smooth self-attention, a LayerNorm, then any other aggregator; with SmoothAttentionPool this is SmTAP.

    Args:
        features: D of an instance, kept by every layer; the authors used 512.
        pool: Aggregator behind the layers, for `features` features.
        heads: Attention heads of a layer; the authors used 8.
        layers: Number of layers; the authors used 2.
        mlp_ratio, dropout: Of a layer's MLP, its width over `features` and the probability of dropout.
        alpha, steps, mode, accelerated: Of the smooth operator in each layer, see SmoothOperator.
        add_input: Add the bag itself behind each layer.
        landmarks: Attend to so many learned landmarks, which attend to all instances, in the manner of Set
            Transformer's inducing points (arXiv 1810.00825): N × landmarks products. None: N², as SmTAP has them.
    """

    def __init__(
        self,
        features: int,
        pool: nn.Module,
        heads: int = 8,
        layers: int = 2,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        alpha: float | str = "trainable",
        steps: int = 10,
        mode: str = "approx",
        accelerated: bool = False,
        add_input: bool = False,
        landmarks: Optional[int] = None,
    ) -> None:
        super().__init__()
        if features % heads:
            raise ValueError(f"{features} features cannot be shared among {heads} heads: give a number that divides")
        if landmarks is not None and landmarks < 1:
            raise ValueError(f"{landmarks} landmarks see nothing: give 1 or more, or null to attend to every instance")
        self.layers = nn.ModuleList(
            SmoothTransformerLayer(
                features, heads, mlp_ratio, dropout, SmoothOperator(alpha, mode, steps, accelerated), landmarks
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(features)
        self.pool = pool
        self.add_input = add_input

    def forward(self, x: Tensor, mask: Optional[Tensor], graph: Graph) -> Pooled:
        """Pool x [B, D, N] over the instances of mask [B, 1, N], or without a mask over all."""
        rows = x.transpose(1, 2)  # [B, N, D]
        adj = adjacency(graph, x)
        # [B, 1, 1, N], which broadcasts over heads and queries; attention is faster without
        real = None if mask is None else (mask > 0.5).unsqueeze(2)
        y = rows
        for layer in self.layers:
            y = layer(y, real, adj)  # [B, N, D]
            if self.add_input:
                y = y + rows
        return self.pool(self.norm(y).transpose(1, 2), mask, graph)
