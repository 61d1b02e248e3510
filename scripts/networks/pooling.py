# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""From the instances of a bag to one embedding: mean, max, attention, gated attention, smooth attention.

An aggregator that sums instances by weights says so in two steps, so that a bag need not fit into memory:
`columns` asks each instance alone, `attend` looks at all the answers.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from scripts.networks.graph import Graph
from scripts.networks.smooth import SmoothOperator, adjacency

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


class Pooled(NamedTuple):
    embedding: Tensor  # [B, D] of the bag
    scores: Tensor  # [B, 1, N] of each instance, before the softmax; [B, C, N] where classes are scored one by one
    attention: Tensor  # the same shape; sums to 1 over the real instances


class Attended(NamedTuple):
    scores: Tensor  # [B, 1, N] f
    attention: Tensor  # [B, 1, N] s = softmax(f)
    weights: Tensor  # [B, 1, N] of the instances in the sum: s, or Sm(s)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the real instances; padding gets 0."""
    return torch.softmax(scores.masked_fill(mask < 0.5, float("-inf")), dim=2)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """z = X s. x: [B, D, N], weights: [B, 1, N]."""
    return torch.matmul(x, weights.to(x.dtype).transpose(1, 2)).squeeze(2)  # [B, D]


def pooled(x: Tensor, attended: Attended) -> Pooled:
    return Pooled(weighted_sum(x, attended.weights), attended.scores, attended.attention)


class MeanPool(nn.Module):
    """Every instance counts the same; it ranks none."""

    def columns(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :1]).transpose(1, 2)  # [B, N, 1]

    def attend(self, columns: Tensor, mask: Tensor, graph: Graph) -> Attended:
        f = columns.transpose(1, 2)  # [B, 1, N]
        s = masked_softmax(f, mask)  # [B, 1, N]
        return Attended(f, s, s)

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        return pooled(x, self.attend(self.columns(x), mask, graph))


class MaxPool(nn.Module):
    """The largest value of each feature; an instance's attention is its share of these values."""

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        real = mask > 0.5  # [B, 1, N]
        embedding = x.masked_fill(~real, float("-inf")).amax(dim=2)  # [B, D]
        wins = ((x == embedding.unsqueeze(2)) & real).to(x.dtype)  # [B, D, N]
        share = (wins / wins.sum(dim=2, keepdim=True)).mean(dim=1, keepdim=True)  # [B, 1, N], a tie is shared
        return Pooled(embedding, share, share)


class InstancePool(nn.Module):
    """Each instance gets logits of its own, and the bag their largest, or the logit of their mean probability.

    The bag's logits are the embedding: the head of the network is `torch.nn.Identity`. Each class stands for itself.

    Args:
        in_features: of an instance.
        classes: logits of an instance and of the bag.
        pool: "max" or "mean" (Ilse et al., 2018, "instance+max" and "instance+mean").
    """

    def __init__(self, in_features: int, classes: int = 1, pool: str = "max") -> None:
        super().__init__()
        if pool not in ("max", "mean"):
            raise ValueError(f"pool is {pool!r}: 'max' or 'mean' is wanted")
        self.classify = nn.Linear(in_features, classes)
        self.largest = pool == "max"

    def columns(self, x: Tensor) -> Tensor:
        return self.classify(x.transpose(1, 2))  # [B, N, C]

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        return self.pool(self.columns(x), mask)

    def pool(self, columns: Tensor, mask: Tensor) -> Pooled:
        f = columns.transpose(1, 2)  # [B, C, N]
        padding = mask < 0.5  # [B, 1, N]
        if self.largest:
            logits = f.masked_fill(padding, float("-inf")).amax(dim=2)  # [B, C]
        else:
            yes = nn.functional.logsigmoid(f).masked_fill(padding, float("-inf"))
            no = nn.functional.logsigmoid(-f).masked_fill(padding, float("-inf"))
            logits = torch.logsumexp(yes, dim=2) - torch.logsumexp(no, dim=2)  # log p / (1 - p), p the mean
        return Pooled(logits, f, masked_softmax(f, mask))


class AttentionPool(nn.Module):
    """s = softmax(w · tanh(V h)), z = Σ s h (Ilse et al., 2018)."""

    def __init__(self, in_features: int, hidden_features: int = 128, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, hidden_features, bias=bias)
        self.weigh = nn.Linear(hidden_features, 1, bias=False)

    def columns(self, x: Tensor) -> Tensor:
        return self.project(x.transpose(1, 2))  # [B, N, A]

    def attend(self, columns: Tensor, mask: Tensor, graph: Graph) -> Attended:
        f = self.weigh(torch.tanh(columns)).transpose(1, 2)  # [B, 1, N]
        s = masked_softmax(f, mask)  # [B, 1, N]
        return Attended(f, s, s)

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        return pooled(x, self.attend(self.columns(x), mask, graph))


class GatedAttentionPool(nn.Module):
    """s = softmax(w · (tanh(V h) ⊙ sigmoid(U h))), z = Σ s h (Ilse et al., 2018)."""

    def __init__(self, in_features: int, hidden_features: int = 128, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, hidden_features, bias=bias)
        self.gate = nn.Linear(in_features, hidden_features, bias=bias)
        self.weigh = nn.Linear(hidden_features, 1, bias=False)

    def columns(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2)  # [B, N, D]
        return torch.tanh(self.project(h)) * torch.sigmoid(self.gate(h))  # [B, N, A]

    def attend(self, columns: Tensor, mask: Tensor, graph: Graph) -> Attended:
        f = self.weigh(columns).transpose(1, 2)  # [B, 1, N]
        s = masked_softmax(f, mask)  # [B, 1, N]
        return Attended(f, s, s)

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        return pooled(x, self.attend(self.columns(x), mask, graph))


class SmoothAttentionPool(nn.Module):
    """Attention with the smooth operator before the projection (early), before the activation (mid) or after f (late).

    Sm is linear and symmetric: Sm(X) W = Sm(X W) and Sm(X)ᵀ s = Xᵀ Sm(s), so "early" never smooths D columns.

    Args:
        placement: "early" (the paper's default), "mid" or "late".
        alpha, mode, steps, accelerated: of the smooth operator.
        spectral_norm: divide the weights of the linear layers behind Sm by their largest singular value.
        activation: "tanh", "relu" or "gelu".
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int = 128,
        placement: str = "early",
        alpha: float | str = "trainable",
        steps: int = 10,
        mode: str = "approx",
        accelerated: bool = False,
        spectral_norm: bool = False,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if placement not in ("early", "mid", "late"):
            raise ValueError(f"placement is {placement!r}: 'early', 'mid' or 'late' is wanted")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}: one of {', '.join(ACTIVATIONS)} is wanted")
        self.placement = placement
        self.project = nn.Linear(in_features, hidden_features)
        self.weigh = nn.Linear(hidden_features, 1, bias=False)
        self.activation = ACTIVATIONS[activation]()
        self.smooth = SmoothOperator(alpha, mode, steps, accelerated)
        if spectral_norm and placement == "early":
            parametrizations.spectral_norm(self.project)
        if spectral_norm and placement != "late":
            parametrizations.spectral_norm(self.weigh)

    def columns(self, x: Tensor) -> Tensor:
        return torch.matmul(x.transpose(1, 2), self.project.weight.t())  # X W: [B, N, A]

    def attend(self, columns: Tensor, mask: Tensor, graph: Graph) -> Attended:
        xw = columns.transpose(1, 2)  # [B, A, N]
        b = self.project.bias.unsqueeze(1)  # [A, 1]
        a = adjacency(graph)
        if self.placement == "early":
            u = self.smooth.along(xw, a) + b  # [B, A, N]
        elif self.placement == "mid":
            u = self.smooth.along(xw + b, a)
        else:
            u = xw + b
        f = self.weigh(self.activation(u).transpose(1, 2)).transpose(1, 2)  # [B, 1, N]
        if self.placement == "late":
            f = self.smooth.along(f, a)
        s = masked_softmax(f, mask)  # [B, 1, N]
        return Attended(f, s, self.smooth.along(s, a) if self.placement == "early" else s)

    def forward(self, x: Tensor, mask: Tensor, graph: Graph) -> Pooled:
        return pooled(x, self.attend(self.columns(x), mask, graph))


def folded(network: nn.Module) -> nn.Module:
    """A copy whose spectrally normalised layers are plain ones with the weights they have now."""
    plain = copy.deepcopy(network)
    for parent in plain.modules():
        for name, layer in parent.named_children():
            # torch's own remove_parametrizations would change the class that the copy shares with the network
            if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
                setattr(parent, name, _plain_linear(layer))
    return plain


def _plain_linear(layer: nn.Linear) -> nn.Linear:
    weight = layer.weight.detach()
    plain = nn.Linear(
        layer.in_features, layer.out_features, layer.bias is not None, device=weight.device, dtype=weight.dtype
    )
    plain.load_state_dict({"weight": weight} if layer.bias is None else {"weight": weight, "bias": layer.bias})
    return plain.train(layer.training)
