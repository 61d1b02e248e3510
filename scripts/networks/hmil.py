# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""HMIL (arXiv 2411.07660), the network for hierarchical labels: one branch for coarse classes, one for fine ones."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from scripts.networks.encoders import FeatureProjection
from scripts.networks.evidence import Evidence, of_linear
from scripts.networks.graph import Graph, no_graph
from scripts.networks.mil import BagNetwork, beside, of_padded
from scripts.networks.pooling import masked_softmax

Hierarchy = Mapping[str, Sequence[str]]  # coarse class → its fine classes


def membership(hierarchy: Optional[Hierarchy]) -> Tensor:
    """Return [coarse, fine], 1 where a fine class belongs to a coarse one; both numbered in the order listed."""
    if hierarchy is None:
        raise ValueError("no hierarchy of classes is given: name configs/bracs.json, panda.json, or one like them")
    for coarse, own in hierarchy.items():
        if isinstance(own, str) or len(own) == 0:
            raise ValueError(f"the coarse class {coarse!r} needs a list of at least one fine class, not {own!r}")
    if len(hierarchy) < 2:
        raise ValueError(f"a hierarchy needs two or more coarse classes, not {len(hierarchy)}")
    fine = [name for own in hierarchy.values() for name in own]
    twice = next((name for name in fine if fine.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the fine class {twice!r} is listed twice: it must belong to one coarse class, once")
    return torch.tensor([[float(name in own) for name in fine] for own in hierarchy.values()])


class HierarchicalPrediction(NamedTuple):
    """The output of HMIL for a batch of bags; what is not called coarse is fine."""

    logits: Tensor  # [B, F]
    scores: Tensor  # [B, F, N] attention logits of each instance for each class
    attention: Tensor  # [B, F, N] sums to 1 over the real instances
    graph: Graph  # K = 0
    coarse_logits: Tensor  # [B, C]
    coarse_attention: Tensor  # [B, C, N] sums to 1 over the real instances
    features: Tensor  # [B, F, E] of the bag, for each class
    instance_logits: Optional[Tensor] = None  # [B, F, N] of each instance, as of BagPrediction; in evaluation
    evidence: Optional[Tensor] = None
    leave_one_out: Optional[Tensor] = None


class ClassAttention(nn.Module):
    """Gated attention for each class: A = softmax(W (tanh(V h) ⊙ sigmoid(U h))), M = A H, one logit per row of M."""

    def __init__(self, in_features: int, classes: int, hidden_features: int = 128) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, hidden_features)
        self.gate = nn.Linear(in_features, hidden_features)
        self.weigh = nn.Linear(hidden_features, classes, bias=False)
        self.classify = nn.Linear(in_features, classes)  # row k and bias k are those of class k

    def forward(self, x: Tensor, mask: Optional[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pool x [B, D, N] over mask [B, 1, N] for each of K classes; return logits, scores, attention and features."""
        h = x.transpose(1, 2)  # [B, N, D]
        f = self.weigh(torch.tanh(self.project(h)) * torch.sigmoid(self.gate(h))).transpose(1, 2)  # [B, K, N]
        a = masked_softmax(f, mask)  # [B, K, N]
        m = torch.matmul(a, h)  # [B, K, D]
        logits = (m * self.classify.weight).sum(dim=2) + self.classify.bias  # [B, K]
        return logits, f, a, m

    def explain(self, x: Tensor, a: Tensor, mask: Optional[Tensor]) -> Evidence:
        """Return what each instance of x [B, D, N] adds to the logits, by its attention a [B, K, N]."""
        own = self.classify(x.transpose(1, 2)).transpose(1, 2)  # [B, K, N]
        return of_linear(own, self.classify.bias.unsqueeze(0), a, mask)


class HMIL(BagNetwork):
    """A network for the fine class of a bag, trained together with its coarse class.

    The coarse branch attends to H1 = h1(X), the fine branch to the re-embedding H2 = h2(H1). ReLU follows each linear
    layer of h1 and h2; the paper leaves this open.

    Args:
        in_features: D of an instance.
        hierarchy: Coarse class → list of its fine classes; they are numbered in the order listed.
        embed_features: E; h1 maps D → E → D, h2 maps D → E.
        hidden_features: Width of both attentions.
    """

    def __init__(
        self, in_features: int, hierarchy: Hierarchy, embed_features: int = 256, hidden_features: int = 128
    ) -> None:
        super().__init__()
        coarse, fine = membership(hierarchy).shape
        self.narrow = FeatureProjection(in_features, embed_features)
        self.widen = FeatureProjection(embed_features, in_features)
        self.refine = FeatureProjection(in_features, embed_features)
        self.coarse = ClassAttention(in_features, coarse, hidden_features)
        self.fine = ClassAttention(embed_features, fine, hidden_features)

    @torch.jit.export
    def predict(
        self, image: Tensor, coords: Optional[Tensor] = None, mask: Optional[Tensor] = None
    ) -> HierarchicalPrediction:
        """Predict both levels for image [B, D, N]; coords are ignored, mask is [B, 1, N]."""
        mask = beside(image, of_padded(mask))
        h1 = self.widen(self.narrow(image, mask), mask)  # [B, D, N]
        h2 = self.refine(h1, mask)  # [B, E, N]
        coarse_logits, _, coarse_attention, _ = self.coarse(h1, mask)  # [B, C], [B, C, N]
        logits, scores, attention, features = self.fine(h2, mask)  # [B, F], [B, F, N], [B, F, N], [B, F, E]
        of_each = Evidence(None, None, None) if self.training else self.fine.explain(h2, attention, mask)
        return HierarchicalPrediction(
            logits=logits,
            scores=scores,
            attention=attention,
            graph=no_graph(image),
            coarse_logits=coarse_logits,
            coarse_attention=coarse_attention,
            features=features,
            instance_logits=of_each.own,
            evidence=of_each.shares,
            leave_one_out=of_each.left_out,
        )
