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
"""MILNetwork = encoder + aggregator + head: every system of the papers is a composition of these three."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from scripts.networks.graph import Graph, build_graph, no_graph


class BagPrediction(NamedTuple):
    """All a network says of a batch of bags. Every field is batch first."""

    logits: Tensor  # [B, classes]
    scores: Tensor  # [B, 1, N] of each instance, before the softmax
    attention: Tensor  # [B, 1, N] sums to 1 over the real instances
    graph: Graph  # who was whose neighbour, for losses on neighbouring scores


class MILNetwork(nn.Module):
    """A bag of instances → the logits of its label.

    Args:
        encoder: (image, mask) → features [B, D, N].
        aggregator: (features, mask, graph) → Pooled.
        head: embedding [B, D] → logits [B, classes].
        spatial_dims: 0 = a bag without neighbours, 1 = a chain of slices, 2 = patches on a lattice.
    """

    def __init__(self, encoder: nn.Module, aggregator: nn.Module, head: nn.Module, spatial_dims: int = 0) -> None:
        super().__init__()
        if spatial_dims not in (0, 1, 2):
            raise ValueError(f"spatial_dims is {spatial_dims}: 0 (no neighbours), 1 (slices) or 2 (patches) is wanted")
        self.encoder = encoder
        self.aggregator = aggregator
        self.head = head
        self.spatial_dims = spatial_dims

    def forward(self, image: Tensor, coords: Optional[Tensor] = None, mask: Optional[Tensor] = None) -> Tensor:
        """Logits [B, classes]. In training the whole BagPrediction: under DDP a loss sees no more than `forward` says.

        Args:
            image: [B, ..., N], the instances along the last axis.
            coords: [B, 1 or 2, N]; without it slices are taken in the order given.
            mask: [B, 1, N], 1 = a real instance; without it all are real.
        """
        prediction = self.predict(image, coords, mask)
        if not torch.jit.is_scripting() and self.training:
            return prediction  # type: ignore[return-value]
        return prediction.logits

    @torch.jit.export
    def predict(self, image: Tensor, coords: Optional[Tensor] = None, mask: Optional[Tensor] = None) -> BagPrediction:
        if mask is None:
            mask = torch.ones([image.shape[0], 1, image.shape[-1]], device=image.device)
        graph = self.graph(coords, mask)
        x = self.encoder(image, mask)  # [B, D, N]
        pooled = self.aggregator(x, mask, graph)
        return BagPrediction(self.head(pooled.embedding), pooled.scores, pooled.attention, graph)

    def graph(self, coords: Optional[Tensor], mask: Tensor) -> Graph:
        if self.spatial_dims == 0:
            return no_graph(mask)
        if coords is None:
            if self.spatial_dims == 2 and mask.shape[2] > 1:
                raise ValueError("patches need coords in units of the patch pitch: without them nobody is a neighbour")
            coords = torch.arange(mask.shape[2], device=mask.device).to(mask.dtype).expand_as(mask)
        if coords.shape[1] != self.spatial_dims and mask.shape[2] > 1:
            raise ValueError(
                f"coords hold {coords.shape[1]} numbers per instance, the network wants {self.spatial_dims}"
            )
        return build_graph(coords, mask)
