# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""MILNetwork = encoder + aggregator + head: every network of the papers is a composition of these three."""

import copy
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from scripts.networks.evidence import Evidence, Sum, is_linear, of_linear, sum_of, sum_without, without_largest
from scripts.networks.graph import (
    Graph,
    build_graph,
    exporting,
    filled,
    no_graph,
    readable,
    require_coords,
    weighted_by_features,
)
from scripts.networks.pooling import Pooled, weighted_sum


class BagPrediction(NamedTuple):
    """The output of a network for a batch of bags."""

    logits: Tensor  # [B, classes]
    scores: Tensor  # [B, 1, N] attention logits; [B, classes, N] where instances are classified one by one
    attention: Tensor  # the same shape; sums to 1 over the real instances
    graph: Graph  # for losses on the scores of neighbours
    # of each instance in each class, [B, C, N], in evaluation and where the network tells it (see evidence.py)
    instance_logits: Optional[Tensor] = None
    evidence: Optional[Tensor] = None  # sums to the logit less its bias
    leave_one_out: Optional[Tensor] = None


class BagNetwork(nn.Module):
    """Base of the networks: `forward` gives a trainer or an evaluator what it needs of `predict`."""

    def forward(self, image: Tensor, coords: Optional[Tensor] = None, mask: Optional[Tensor] = None) -> Tensor:
        """Run the network.

        Args:
            image: [B, ..., N], the instances along the last axis.
            coords: [B, 1 or 2, N]; without it slices are taken in the order given.
            mask: [B, 1, N], 1 = a real instance; without it all are real.
                Both may stay in the host's memory when the image is on a GPU: what is asked of them is then answered
                without waiting for it.

        Returns:
            Logits [B, classes]; in training the whole prediction, as under DDP a loss sees only what `forward` returns.
        """
        prediction = self.predict(image, coords, mask)  # type: ignore[operator]
        if not torch.jit.is_scripting() and self.training:
            return prediction
        return prediction.logits


def of_padded(mask: Optional[Tensor]) -> Optional[Tensor]:
    """Return the mask [B, 1, N] of a batch, or None where no bag is padded; a bag without a real instance is refused.

    A mask on an accelerator is not asked, and counts as one of padded bags.
    """
    if mask is not None and readable(mask):
        real = mask > 0.5
        if not bool(real.any(dim=2).all()):
            raise ValueError("a bag of the batch holds no real instance: leave it out")
        if bool(real.all()):
            return None
    return mask


def beside(image: Tensor, given: Optional[Tensor]) -> Optional[Tensor]:
    """Return what is given of a batch where its image lies."""
    return None if given is None else given.to(image.device, non_blocking=True)


class MILNetwork(BagNetwork):
    """A network for the label of a bag of instances.

    Args:
        encoder: (image, mask) → features [B, D, N]; the mask is None where no bag of the batch is padded.
        aggregator: (features, mask, graph) → Pooled; likewise.
        head: Embedding [B, D] → logits [B, classes].
        spatial_dims: 0 = no neighbours, 1 = a chain of slices, 2 = patches on a lattice.
        radius, spacing, edgeless: Of the graph, see build_graph.
        feature_weights: Weigh neighbours with similar features more.
        slots: Fill every bag with zeros up to this many instances and treat them as real, for published weights that
            were trained so. Scores and attention then cover the slots; the first of them are the bag.
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
        self.linear = is_linear(head)
        self.classifies_instances = isinstance(head, nn.Identity)

    def __prepare_scriptable__(self) -> nn.Module:
        """Give TorchScript, which knows no parametrization, a copy with the normalised weights themselves."""
        plain = copy.deepcopy(self)
        for parent in plain.modules():
            for name, layer in parent.named_children():
                # torch's own remove_parametrizations would change the class that the copy shares with the network
                if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
                    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
                    linear.weight, linear.bias = nn.Parameter(layer.weight.detach()), layer.bias
                    setattr(parent, name, linear.train(layer.training))
        return plain

    @torch.jit.export
    def predict(self, image: Tensor, coords: Optional[Tensor] = None, mask: Optional[Tensor] = None) -> BagPrediction:
        """Predict bags; the arguments are those of `forward`."""
        if coords is not None and self.spatial_dims > 0:
            require_coords(coords, mask, self.spacing)
        mask, coords = of_padded(mask), beside(image, coords)  # [B, 1, N] or None, [B, 1 or 2, N]
        slots = self.slots
        if slots is not None:
            image, coords = fill_slots(image, coords, beside(image, mask), slots)
            mask = None
        here = beside(image, mask)
        graph = self.graph(coords, ones_of(image) if here is None else here)
        x = self.encoder(image, mask)  # [B, D, N]
        if self.feature_weights:
            graph = weighted_by_features(graph, x)
        pooled = self.aggregator(x, here, graph)  # embedding [B, D], scores and attention [B, 1, N]
        logits = self.head(pooled.embedding)  # [B, C]
        of_each = Evidence(None, None, None) if self.training else self.explain(logits, pooled, here)
        return BagPrediction(
            logits, pooled.scores, pooled.attention, graph, of_each.own, of_each.shares, of_each.left_out
        )

    def explain(self, logits: Tensor, pooled: Pooled, mask: Optional[Tensor]) -> Evidence:
        """Return what each instance adds to the logits [B, C]."""
        x, weights, without = pooled.features, pooled.weights, pooled.without
        if x is not None and weights is not None and self.linear:
            return of_linear(self.of_each(x), self.bias(pooled.embedding), weights, mask)
        left_out: Optional[Tensor] = None
        if x is not None and weights is not None:
            others = weighted_sum(x.double(), without_largest(weights))  # [B, D]
            left_out = self.left_out_of_sum(logits, sum_of(pooled.embedding, others, weights), x, 0)
        elif without is not None:
            left_out = logits.unsqueeze(2) - self.of_each(without)  # [B, C, N]
        if left_out is not None:
            left_out = filled(left_out, mask, 0.0)
        return Evidence(pooled.scores if self.classifies_instances else None, None, left_out)

    @torch.jit.export
    def left_out_of_sum(self, logits: Tensor, of: Sum, x: Tensor, start: int) -> Tensor:
        """Return logits [B, C] less those without each of the instances x [B, D, n] from number `start` on."""
        if exporting():  # a number of steps would fix that of the instances
            return logits.unsqueeze(2) - self.of_each(sum_without(of, x, start))
        parts: list[Tensor] = []
        for some in x.split(8192, dim=2):  # as an embedding is made for each
            parts.append(logits.unsqueeze(2) - self.of_each(sum_without(of, some, start)))  # [B, C, 8192]
            start += some.shape[2]
        return torch.cat(parts, dim=2)

    @torch.jit.export
    def of_each(self, embeddings: Tensor) -> Tensor:
        """Return the logits [B, C, N] of N embeddings [B, D, N]."""
        return self.head(embeddings.transpose(1, 2)).transpose(1, 2)

    @torch.jit.export
    def bias(self, embedding: Tensor) -> Tensor:
        """Return the logits [1, C] of an embedding [B, D] in which nothing is."""
        return self.head(torch.zeros_like(embedding[:1]))

    def graph(self, coords: Optional[Tensor], mask: Tensor) -> Graph:
        """Build the graph of the bags from coords [B, spatial_dims, N] and mask [B, 1, N]."""
        if self.spatial_dims == 0:
            return no_graph(mask)
        if coords is None:
            if self.spatial_dims == 2 and mask.shape[2] > 1:
                raise ValueError("patches have no coords: give them in units of the patch pitch")
            coords = torch.arange(mask.shape[2], device=mask.device).float().expand_as(mask)
        if coords.shape[1] != self.spatial_dims and mask.shape[2] > 1:
            raise ValueError(f"coords of {coords.shape[1]} numbers per instance: the network wants {self.spatial_dims}")
        return build_graph(coords, mask, self.radius, self.spacing, self.edgeless)


def ones_of(image: Tensor) -> Tensor:
    """Return the mask [B, 1, N] of bags that are not padded."""
    return torch.ones([image.shape[0], 1, image.shape[-1]], device=image.device)


def fill_slots(
    image: Tensor, coords: Optional[Tensor], mask: Optional[Tensor], slots: int
) -> tuple[Tensor, Optional[Tensor]]:
    """Append zeros to each bag up to `slots` instances, and return image and coords, of which all count as real."""
    n = image.shape[-1]
    if n > slots:
        raise ValueError(f"{n} instances for a network of {slots} slots: leave some out, or train without slots")
    if mask is None:
        mask = ones_of(image)
    expanded = mask.view([mask.shape[0]] + [1] * (image.dim() - 2) + [n])  # [B, 1, ..., N]
    image = pad(image * expanded, [0, slots - n])  # [B, ..., slots]
    if coords is not None:
        real = mask > 0.5  # [B, 1, N]
        behind = coords.masked_fill(~real, float("-inf")).amax(dim=2, keepdim=True) + 1
        coords = torch.cat([torch.where(real, coords, behind), behind.expand(-1, -1, slots - n)], dim=2)
    return image, coords
