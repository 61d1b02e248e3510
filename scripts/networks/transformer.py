# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""SmTAP: attention among all instances, smoothed, before the attention pool (arXiv 2410.03276)."""

from __future__ import annotations

from typing import Optional

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from scripts.networks.graph import Graph, exporting
from scripts.networks.pooling import Pooled
from scripts.networks.smooth import Adjacency, SmoothOperator, adjacency


class SmoothTransformerLayer(nn.Module):
    """Z = X + Sm(MHSA(LN(X))), Y = Z + MLP(LN(Z))."""

    def __init__(self, features: int, heads: int, mlp_ratio: int, dropout: float, smooth: SmoothOperator) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(features)
        self.qkv = nn.Linear(features, 3 * features, bias=False)
        self.smooth = smooth
        self.norm2 = nn.LayerNorm(features)
        self.mlp = nn.Sequential(
            nn.Linear(features, mlp_ratio * features),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_ratio * features, features),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, real: Optional[Tensor], of_bags: Adjacency) -> Tensor:
        """x: [B, N, D], real: [B, 1, 1, N] or None where all are."""
        attended = self.attend_to_all(self.norm1(x), real)  # [B, N, D]
        z = x + self.smooth.along(attended.transpose(1, 2), of_bags).transpose(1, 2)
        return z + self.mlp(self.norm2(z))

    def attend_to_all(self, x: Tensor, real: Optional[Tensor]) -> Tensor:
        b, n, d = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        qkv = qkv.contiguous()  # [3, B, H, N, D/H], each head's rows side by side, which is faster
        y = scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=real)  # [B, H, N, D/H], no N×N kept
        return y.transpose(1, 2).reshape(b, n, d)


class SmoothTransformer(nn.Module):
    """Layers of smooth self-attention, a LayerNorm, and then any other aggregator: with SmoothAttentionPool, SmTAP.

    Args:
        features: of an instance, kept by every layer.
        pool: the aggregator behind the layers, of `features` features.
        heads, layers, mlp_ratio, dropout: of the transformer; the authors ran 512 features, 8 heads, 2 layers.
        alpha, mode, steps, accelerated: of the smooth operator in each layer.
        add_input: add the bag itself behind each layer.
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
    ) -> None:
        super().__init__()
        if features % heads:
            raise ValueError(f"{features} features cannot be shared among {heads} heads: give a number that divides")
        self.layers = nn.ModuleList(
            SmoothTransformerLayer(features, heads, mlp_ratio, dropout, SmoothOperator(alpha, mode, steps, accelerated))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(features)
        self.pool = pool
        self.add_input = add_input

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        rows = x.transpose(1, 2)  # [B, N, D]
        real, of_bags = _real_or_none(mask), adjacency(graph)
        y = rows
        for layer in self.layers:
            y = layer(y, real, of_bags)
            if self.add_input:
                y = y + rows
        return self.pool(self.norm(y).transpose(1, 2), mask, graph)


def _real_or_none(mask: Tensor) -> Optional[Tensor]:
    """[B, 1, 1, N], spread over heads and queries without a copy; a bag without padding needs none."""
    if not exporting() and bool((mask > 0.5).all()):
        return None
    return (mask > 0.5).unsqueeze(2)
