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
"""The smooth operator Sm: neighbouring instances of a bag come closer to each other (arXiv 2410.03276)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scripts.networks.graph import Graph, aggregate, normalised


class SmoothOperator(nn.Module):
    """Sm(U) = (1 - alpha) (I - alpha Ã)^-1 U, by the T steps G <- (1 - alpha) U + alpha Ã G.

    Args:
        alpha: how strongly, between 0 (not at all) and 1; "trainable" starts at 0.5 and is learned.
        steps: T of the recursion.
    """

    def __init__(self, alpha: float | str = 0.5, steps: int = 10) -> None:
        super().__init__()
        if isinstance(alpha, str):
            if alpha != "trainable":
                raise ValueError(f"alpha is {alpha!r}: a number between 0 and 1, or 'trainable', is wanted")
            self.alpha_logit = nn.Parameter(torch.zeros(()))
        else:
            if not 0 < alpha < 1:
                raise ValueError(
                    f"alpha is {alpha}: it must lie between 0 and 1; without smoothing use an AttentionPool"
                )
            self.register_buffer("alpha_logit", torch.tensor(math.log(alpha / (1 - alpha))))
        self.steps = steps

    @property
    def alpha(self) -> Tensor:
        return torch.sigmoid(self.alpha_logit)  # in (0, 1) by construction

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """x: [B, D, N], padding 0."""
        if graph.neighbours.shape[1] == 0:
            raise ValueError("smoothing needs neighbours: give the network spatial_dims 1 (slices) or 2 (patches)")
        if x.dtype == torch.half or x.dtype == torch.bfloat16:
            x = x.float()  # half precision would round alpha, and every step adds its error
        alpha = self.alpha.to(x.dtype)
        a = normalised(graph)
        g = x
        for _ in range(self.steps):
            g = (1 - alpha) * x + alpha * aggregate(g, a)  # [B, D, N]
        return g
