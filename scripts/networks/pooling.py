# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Aggregators from the instances of a bag to one embedding: mean, max, attention, gated and smooth attention."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid
from torch.nn.utils import parametrizations

from scripts.networks.evidence import second_largest, sum_of_others, where_there_are_others
from scripts.networks.graph import Graph, filled
from scripts.networks.smooth import Adjacency, SmoothOperator, adjacency

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


class Pooled(NamedTuple):
    """The output of an aggregator."""

    embedding: Tensor  # [B, D] of the bag
    scores: Tensor  # [B, 1, N] attention logits; [B, C, N] where instances are classified one by one
    attention: Tensor  # the same shape; sums to 1 over the real instances
    features: Optional[Tensor] = None  # [B, D, N] h of z = Σ w_i h_i, where the embedding is such a sum
    weights: Optional[Tensor] = None  # [B, 1, N] w of this sum: s, or Sm(s)
    without: Optional[Tensor] = None  # [B, D, N] elsewhere: the embedding without each instance, in evaluation


class Attended(NamedTuple):
    """The weights of the instances in the sum, and what they come from."""

    scores: Tensor  # [B, 1, N] f
    attention: Tensor  # [B, 1, N] s = softmax(f)
    weights: Tensor  # [B, 1, N] s, or Sm(s)


def masked_softmax(scores: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Take the softmax over the real instances; padding gets 0."""
    return torch.softmax(filled(scores, mask, float("-inf")), dim=2)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Return z = X s [B, D] of x [B, D, N] and weights [B, 1, N]."""
    return torch.matmul(x, weights.to(x.dtype).transpose(1, 2)).squeeze(2)


class WeightedPool(nn.Module):
    """Base of the aggregators with z = Σ s_i h_i, s = softmax(f).

    They work in two steps, so that a bag need not fit into memory (see streaming.py): `columns` looks at each instance
    by itself, `attend` at the columns of all.
    """

    def columns(self, x: Tensor) -> Tensor:
        """Return f [B, N, 1], or what f needs of each instance [B, N, A], from x [B, D, N]."""
        raise NotImplementedError

    def attend(self, columns: Tensor, mask: Optional[Tensor], graph: Graph) -> Attended:
        """Return the weights of all instances, from columns [B, N, 1 or A] and mask [B, 1, N]."""
        f = columns.transpose(1, 2)  # [B, 1, N]
        s = masked_softmax(f, mask)  # [B, 1, N]
        return Attended(f, s, s)

    def forward(self, x: Tensor, mask: Optional[Tensor], graph: Graph) -> Pooled:
        """Pool x [B, D, N] over the instances of mask [B, 1, N], or without a mask over all."""
        attended = self.attend(self.columns(x), mask, graph)
        z = weighted_sum(x, attended.weights)  # [B, D]
        return Pooled(z, attended.scores, attended.attention, x, attended.weights)


class MeanPool(WeightedPool):
    """The mean of the instances; all get the same score."""

    def columns(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :1]).transpose(1, 2)  # f: [B, N, 1]


class MaxPool(nn.Module):
    """The largest value of each feature; an instance's attention is its share of these values."""

    def forward(self, x: Tensor, mask: Optional[Tensor], graph: Graph) -> Pooled:
        real = filled(x, mask, float("-inf"))  # [B, D, N]
        z = real.amax(dim=2)  # [B, D]
        wins = (real == z.unsqueeze(2)).to(x.dtype)  # [B, D, N]
        share = (wins / wins.sum(dim=2, keepdim=True)).mean(dim=1, keepdim=True)  # [B, 1, N], a tie is shared
        return Pooled(z, share, share, without=None if self.training else second_largest(x, mask))


class InstancePool(nn.Module):
    """Logits for each instance; the bag gets the largest, or the logit of the mean probability.

    The bag's logits are the embedding, so the head of the network is `torch.nn.Identity`. Classes are independent.

    Args:
        in_features: D of an instance.
        classes: Logits of an instance and of the bag.
        pool: "max" or "mean" (Ilse et al., 2018, "instance+max" and "instance+mean").
    """

    def __init__(self, in_features: int, classes: int = 1, pool: str = "max") -> None:
        super().__init__()
        if pool not in ("max", "mean"):
            raise ValueError(f"pool is {pool!r}: 'max' or 'mean' is wanted")
        self.classify = nn.Linear(in_features, classes)
        self.largest = pool == "max"

    def columns(self, x: Tensor) -> Tensor:
        return self.classify(x.transpose(1, 2))  # logits of each instance: [B, N, C]

    def forward(self, x: Tensor, mask: Optional[Tensor], graph: Graph) -> Pooled:
        return self.pool(self.columns(x), mask)

    def pool(self, columns: Tensor, mask: Optional[Tensor]) -> Pooled:
        """Pool the logits [B, N, C] over the instances of mask [B, 1, N]."""
        f = columns.transpose(1, 2)  # [B, C, N]
        if self.largest:
            logits = filled(f, mask, float("-inf")).amax(dim=2)  # [B, C]
        else:
            log_p = filled(logsigmoid(f), mask, float("-inf"))  # [B, C, N]
            log_not_p = filled(logsigmoid(-f), mask, float("-inf"))  # [B, C, N]
            logits = torch.logsumexp(log_p, dim=2) - torch.logsumexp(log_not_p, dim=2)  # log p / (1 - p), p the mean
        return Pooled(logits, f, masked_softmax(f, mask), without=None if self.training else self.without(f, mask))

    def without(self, f: Tensor, mask: Optional[Tensor]) -> Tensor:
        """Return the bag's logits without each instance, [B, C, N] of f [B, C, N]; 0 where there is no other."""
        if self.largest:
            return second_largest(f, mask)
        p = filled(torch.sigmoid(f.double()), mask, 0.0)  # [B, C, N]
        q = filled(torch.sigmoid(-f.double()), mask, 0.0)  # [B, C, N] 1 - p
        log_p, log_q = torch.log(sum_of_others(p)), torch.log(sum_of_others(q))  # [B, C, N]
        return where_there_are_others((log_p - log_q).float(), mask)


class AttentionPool(WeightedPool):
    """f = w · tanh(V h), s = softmax(f), z = Σ s h (Ilse et al., 2018).

    Args:
        in_features: D of an instance.
        hidden_features: A, rows of V.
        bias: Whether V has a bias.
    """

    def __init__(self, in_features: int, hidden_features: int = 128, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, hidden_features, bias=bias)
        self.weigh = nn.Linear(hidden_features, 1, bias=False)

    def columns(self, x: Tensor) -> Tensor:
        return self.weigh(torch.tanh(self.project(x.transpose(1, 2))))  # f: [B, N, 1]


class GatedAttentionPool(WeightedPool):
    """f = w · (tanh(V h) ⊙ sigmoid(U h)), s = softmax(f), z = Σ s h (Ilse et al., 2018); Args as of AttentionPool."""

    def __init__(self, in_features: int, hidden_features: int = 128, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, hidden_features, bias=bias)
        self.gate = nn.Linear(in_features, hidden_features, bias=bias)
        self.weigh = nn.Linear(hidden_features, 1, bias=False)

    def columns(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2)  # [B, N, D]
        return self.weigh(torch.tanh(self.project(h)) * torch.sigmoid(self.gate(h)))  # f: [B, N, 1]


class SmoothAttentionPool(WeightedPool):
    """f = w · act(X W + b) with Sm on X (early), before the activation (mid) or on f (late); s = softmax(f), z = Xᵀ s.

    "early" pools Sm(X), without smoothing its D columns: Sm(X) W = Sm(X W) and Sm(X)ᵀ s = Xᵀ Sm(s), as Sm is linear
    and symmetric.

    Args:
        in_features: D of an instance.
        hidden_features: A, columns of W.
        placement: "early" (the paper's default), "mid" or "late".
        alpha, steps, mode, accelerated: Of the smooth operator, see SmoothOperator.
        spectral_norm: Divide the weights of the linear layers behind Sm by their largest singular value.
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

    def attend(self, columns: Tensor, mask: Optional[Tensor], graph: Graph) -> Attended:
        a = adjacency(graph, columns)  # Ã of all bags
        c = self.smooth.factors(columns, a.chain)
        return self.weighted(self.scores(columns, self.project.bias, self.weigh.weight, a, c), mask, a, c)

    def scores(self, columns: Tensor, bias: Tensor, weights: Tensor, a: Adjacency, c: Tensor) -> Tensor:
        """Return f [B, 1, N] before a late Sm; of some columns alone their part of it, as f is a sum over columns.

        columns: X W [B, N, A], bias: their b [A], weights: their w [1, A], a: Ã of all bags, c: factors of Sm.
        """
        xw, b = columns.transpose(1, 2), bias.unsqueeze(1)  # [B, A, N], [A, 1]
        if self.placement == "early":
            u = self.smooth.along(xw, a, c) + b  # [B, A, N]
        elif self.placement == "mid":
            u = self.smooth.along(xw + b, a, c)  # [B, A, N]
        else:
            u = xw + b  # [B, A, N]
        return linear(self.activation(u).transpose(1, 2), weights).transpose(1, 2)  # [B, 1, N]

    def weighted(self, f: Tensor, mask: Optional[Tensor], a: Adjacency, c: Tensor) -> Attended:
        """Return the weights of all instances from f [B, 1, N]."""
        if self.placement == "late":
            f = self.smooth.along(f, a, c)  # [B, 1, N]
        s = masked_softmax(f, mask)  # [B, 1, N]
        return Attended(f, s, self.smooth.along(s, a, c) if self.placement == "early" else s)
