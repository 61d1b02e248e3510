# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""MILNetwork = encoder + aggregator + head: every system of the papers is a composition of these three."""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple  # noqa: UP035 - TorchScript reads these

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from scripts.networks.graph import Graph, build_graph, exporting, no_graph, weighted_by_features
from scripts.networks.pooling import folded


class BagPrediction(NamedTuple):
    """All a network says of a batch of bags. Every field is batch first."""

    logits: Tensor  # [B, classes]
    scores: Tensor  # [B, 1, N] of each instance, before the softmax; [B, classes, N] where they are scored one by one
    attention: Tensor  # the same shape; sums to 1 over the real instances
    graph: Graph  # who was whose neighbour, for losses on neighbouring scores


class BagNetwork(nn.Module):
    """What `predict` says of a bag, as a trainer and an evaluator want it."""

    def forward(self, image: Tensor, coords: Optional[Tensor] = None, mask: Optional[Tensor] = None) -> Tensor:
        """Logits [B, classes]. In training the whole prediction: under DDP a loss sees no more than `forward` says.

        Args:
            image: [B, ..., N], the instances along the last axis.
            coords: [B, 1 or 2, N]; without it slices are taken in the order given.
            mask: [B, 1, N], 1 = a real instance; without it all are real.
        """
        prediction = self.predict(image, coords, mask)  # type: ignore[operator]
        if not torch.jit.is_scripting() and self.training:
            return prediction
        return prediction.logits


def real_instances(image: Tensor, mask: Optional[Tensor]) -> Tensor:
    """The mask, all ones where none is given; a bag without a real instance has nothing to say."""
    if mask is None:
        mask = torch.ones([image.shape[0], 1, image.shape[-1]], device=image.device)
    if not exporting() and not bool((mask > 0.5).any(dim=2).all()):
        raise ValueError("a bag of the batch holds no real instance: leave it out")
    return mask


class MILNetwork(BagNetwork):
    """A bag of instances → the logits of its label.

    Args:
        encoder: (image, mask) → features [B, D, N].
        aggregator: (features, mask, graph) → Pooled.
        head: embedding [B, D] → logits [B, classes].
        spatial_dims: 0 = a bag without neighbours, 1 = a chain of slices, 2 = patches on a lattice.
        radius: of the neighbourhood on a lattice, in pitches.
        spacing: the coords of slices are millimetres, and near neighbours weigh more.
        feature_weights: neighbours with alike features weigh more.
        slots: fill every bag with zeros up to so many instances and take them for real; for published weights that
            were trained so. Scores and attention then name the slots, and only the first of them are the bag.
        edgeless: patches of which no two are neighbours are no error, as in a slide of two far tiles; for coords
            whose unit is known to be right.
    """

    def __init__(
        self,
        encoder: nn.Module,
        aggregator: nn.Module,
        head: nn.Module,
        spatial_dims: int = 0,
        radius: float = 1.5,
        spacing: bool = False,
        feature_weights: bool = False,
        slots: Optional[int] = None,
        edgeless: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in (0, 1, 2):
            raise ValueError(f"spatial_dims is {spatial_dims}: 0 (no neighbours), 1 (slices) or 2 (patches) is wanted")
        if feature_weights and spatial_dims == 0:
            raise ValueError("feature_weights weigh neighbours: give spatial_dims 1 (slices) or 2 (patches)")
        if slots is not None and (spatial_dims == 2 or spacing):
            raise ValueError("slots fill up a chain of slices: leave out spatial_dims 2 and spacing, or the slots")
        self.encoder = encoder
        self.aggregator = aggregator
        self.head = head
        self.spatial_dims = spatial_dims
        self.radius = float(radius)  # JSON says 2, and TorchScript wants 2.0
        self.spacing = spacing
        self.feature_weights = feature_weights
        self.slots = slots
        self.edgeless = edgeless

    def __prepare_scriptable__(self) -> nn.Module:
        """TorchScript knows no parametrization: it gets a copy with the normalised weights themselves."""
        return folded(self)

    @torch.jit.export
    def predict(self, image: Tensor, coords: Optional[Tensor] = None, mask: Optional[Tensor] = None) -> BagPrediction:
        mask = real_instances(image, mask)
        slots = self.slots
        if slots is not None:
            image, coords, mask = fill_slots(image, coords, mask, slots)
        graph = self.graph(coords, mask)
        x = self.encoder(image, mask)  # [B, D, N]
        if self.feature_weights:
            graph = weighted_by_features(graph, x)
        pooled = self.aggregator(x, mask, graph)
        return BagPrediction(self.head(pooled.embedding), pooled.scores, pooled.attention, graph)

    def graph(self, coords: Optional[Tensor], mask: Tensor) -> Graph:
        if self.spatial_dims == 0:
            return no_graph(mask)
        if coords is None:
            if self.spatial_dims == 2 and mask.shape[2] > 1:
                raise ValueError("patches need coords in units of the patch pitch: without them nobody is a neighbour")
            coords = torch.arange(mask.shape[2], device=mask.device).float().expand_as(mask)
        if coords.shape[1] != self.spatial_dims and mask.shape[2] > 1:
            raise ValueError(
                f"coords hold {coords.shape[1]} numbers per instance, the network wants {self.spatial_dims}"
            )
        return build_graph(coords, mask, self.radius, self.spacing, self.edgeless)


def fill_slots(
    image: Tensor, coords: Optional[Tensor], mask: Tensor, slots: int
) -> Tuple[Tensor, Optional[Tensor], Tensor]:  # noqa: UP006
    """Zeros behind the last instance of each bag up to `slots` instances, all of them real from now on."""
    n = image.shape[-1]
    if n > slots:
        raise ValueError(
            f"{n} instances for a network of {slots} slots: its weights were trained on bags of at most {slots}; "
            "leave instances out, or train without slots"
        )
    over_all = mask.view([mask.shape[0]] + [1] * (image.dim() - 2) + [n])  # [B, 1, ..., N]
    image = pad(image * over_all, [0, slots - n])
    if coords is not None:
        real = mask > 0.5  # [B, 1, N]
        behind = coords.masked_fill(~real, float("-inf")).amax(dim=2, keepdim=True) + 1
        coords = torch.cat([torch.where(real, coords, behind), behind.expand(-1, -1, slots - n)], dim=2)
    return image, coords, torch.ones([mask.shape[0], 1, slots], device=mask.device)
