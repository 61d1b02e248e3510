# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of HMIL (arXiv 2411.07660): what is said of the coarse class and of the fine class must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax, nll_loss, normalize

from scripts.losses.smoothness import BagCrossEntropy
from scripts.networks.hmil import HierarchicalPrediction, Hierarchy, membership

PARTS = ("CE_coarse", "L_ia", "L_ba", "L_scl")


def instance_alignment(attention: Tensor, coarse_attention: Tensor, membership: Tensor) -> Tensor:
    """L_ia: 1 - cosine of each coarse attention and the sum of its fine ones, the mean over classes and bags.

    attention: [B, F, N], coarse_attention: [B, C, N], membership: [C, F].
    """
    from_fine = torch.matmul(membership, attention)  # [B, C, N]
    return (1 - cosine_similarity(from_fine, coarse_attention, dim=2)).mean()


def bag_alignment(logits: Tensor, coarse_label: Tensor, membership: Tensor) -> Tensor:
    """L_ba: -log of the coarse label's probability, which is the sum of its fine classes' probabilities.

    logits: [B, F] of the fine classes, coarse_label: [B], membership: [C, F].
    """
    log_fine = log_softmax(logits, dim=1).unsqueeze(1)  # [B, 1, F]
    log_coarse = log_fine.masked_fill(membership == 0, float("-inf")).logsumexp(dim=2)  # [B, C]
    return nll_loss(log_coarse, coarse_label)


def supervised_contrast(
    features: Tensor,
    label: Tensor,
    others: Optional[Tensor] = None,
    other_label: Optional[Tensor] = None,
    temperature: float = 0.1,
) -> Tensor:
    """L_scl: bags of one class come closer than bags of two (supervised contrastive, arXiv 2004.11362).

    An anchor is compared with the rest of the batch and with the others. One without a positive says nothing: the
    mean is over the anchors that have one, and 0 if there is none.

    features: [B, E] of the anchors, label: [B], others: [M, E], other_label: [M].
    """
    rivals = features if others is None else torch.cat([features, others])  # [B+M, E]
    rival_label = label if other_label is None else torch.cat([label, other_label])  # [B+M]
    similarity = normalize(features, dim=1) @ normalize(rivals, dim=1).t() / temperature  # [B, B+M]
    itself = torch.eye(*similarity.shape, dtype=torch.bool, device=features.device)
    lowest = torch.finfo(similarity.dtype).min  # not -inf: a lone bag has no rival, and must not give NaN
    log_share = similarity - similarity.masked_fill(itself, lowest).logsumexp(dim=1, keepdim=True)
    positive = (label.unsqueeze(1) == rival_label) & ~itself  # [B, B+M]
    count = positive.sum(dim=1)  # [B]
    of_anchor = -log_share.masked_fill(~positive, 0).sum(dim=1) / count.clamp(min=1)  # [B]
    return of_anchor.sum() / (count > 0).sum().clamp(min=1)


class HierarchicalLoss(nn.Module):
    """CE_fine + β (CE_coarse + L_ia + L_ba) + (1 - β) L_scl, with β = 1 - e/E in epoch e of E, counted from 0.

    Contrasted is the bag's feature vector of its label's class. This is ours, and so is the memory: a batch of one
    bag, usual here, holds nothing to contrast, so the bags before it are remembered as they were, without gradient.
    With a memory longer than an epoch a bag meets its own earlier self.

    Args:
        hierarchy: coarse class → list of its fine classes, as the network's.
        parts: which parts stand beside CE_fine, of "CE_coarse", "L_ia", "L_ba", "L_scl"; none is a flat classifier.
        beta: fixed, from 0 to 1; without it β follows `progress` = e/E, which the handler Curriculum sets.
        temperature: of L_scl.
        memory: how many earlier bags L_scl contrasts with; 0 = the batch alone, as in the paper.
        class_weights: of each fine class, how much a bag of it counts in CE_fine.
    """

    membership: Tensor  # [C, F]

    def __init__(
        self,
        hierarchy: Hierarchy,
        parts: Sequence[str] = PARTS,
        beta: Optional[float] = None,
        temperature: float = 0.1,
        memory: int = 64,
        class_weights: Optional[Sequence[float]] = None,
    ) -> None:
        super().__init__()
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            raise ValueError(f"parts hold {unknown[0]!r}: some of {', '.join(PARTS)} are wanted")
        if beta is not None and not 0 <= beta <= 1:
            raise ValueError(f"beta is {beta}: it must be between 0 and 1")
        self.register_buffer("membership", membership(hierarchy))
        self.fine = BagCrossEntropy(class_weights)
        self.parts = tuple(parts)
        self.fixed_beta = beta
        self.progress: Optional[float] = None
        self.temperature = temperature
        self.memory = memory
        self.remembered: Optional[tuple[Tensor, Tensor]] = None  # [M, E] and [M], the latest first

    @property
    def beta(self) -> float:
        if self.fixed_beta is not None:
            return self.fixed_beta
        if self.progress is None:
            raise ValueError(
                "β = 1 - e/E is not known: give the trainer the handler scripts.engine.training.Curriculum, "
                "or this loss a fixed beta"
            )
        return 1 - self.progress

    def forward(self, prediction: HierarchicalPrediction, label: Tensor) -> Tensor:
        """label: [B] or [B, 1], the number of the fine class."""
        with torch.autocast(prediction.logits.device.type, enabled=False):  # half precision would lose small attention
            return self._loss(prediction, label.flatten().long())

    def _loss(self, prediction: HierarchicalPrediction, label: Tensor) -> Tensor:
        loss = self.fine(prediction.logits.float(), label.unsqueeze(1))
        member = self.membership.to(label.device)
        coarse_label = member.argmax(dim=0)[label]  # [B]
        if "CE_coarse" in self.parts:
            loss = loss + self.beta * cross_entropy(prediction.coarse_logits.float(), coarse_label)
        if "L_ia" in self.parts:
            attention, coarse_attention = prediction.attention.float(), prediction.coarse_attention.float()
            loss = loss + self.beta * instance_alignment(attention, coarse_attention, member)
        if "L_ba" in self.parts:
            loss = loss + self.beta * bag_alignment(prediction.logits.float(), coarse_label, member)
        if "L_scl" in self.parts:
            own = prediction.features.float()[torch.arange(len(label), device=label.device), label]  # [B, E]
            loss = loss + (1 - self.beta) * self._contrast(own, label)
        return loss

    def _contrast(self, features: Tensor, label: Tensor) -> Tensor:
        others, other_label = self.remembered or (features[:0].detach(), label[:0])
        loss = supervised_contrast(features, label, others, other_label, self.temperature)
        if features.requires_grad:  # what is merely evaluated must not reach the training
            self.remembered = (
                torch.cat([features.detach(), others])[: self.memory],
                torch.cat([label, other_label])[: self.memory],
            )
        return loss
