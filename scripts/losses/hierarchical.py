# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of HMIL (arXiv 2411.07660): predictions of coarse and fine classes must agree."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax, nll_loss, normalize

from scripts.losses.smoothness import BagCrossEntropy
from scripts.networks.hmil import HierarchicalPrediction, Hierarchy, membership

HMIL_PARTS = ("CE_coarse", "L_ia", "L_ba", "L_scl")


def instance_alignment(attention: Tensor, coarse_attention: Tensor, membership: Tensor) -> Tensor:
    """Return L_ia: 1 - cosine of each coarse attention and the sum of its fine ones, the mean over classes and bags.

    attention: [B, F, N], coarse_attention: [B, C, N], membership: [C, F].
    """
    from_fine = torch.matmul(membership, attention)  # [B, C, N]
    return (1 - cosine_similarity(from_fine, coarse_attention, dim=2)).mean()


def bag_alignment(logits: Tensor, coarse_label: Tensor, membership: Tensor) -> Tensor:
    """Return L_ba: -log of the coarse label's probability, which is the sum of its fine classes' probabilities.

    logits: [B, F] of the fine classes, coarse_label: [B], membership: [C, F].
    """
    log_fine = log_softmax(logits, dim=1).unsqueeze(1)  # [B, 1, F]
    log_coarse = log_fine.masked_fill(membership == 0, float("-inf")).logsumexp(dim=2)  # [B, C]
    return nll_loss(log_coarse, coarse_label)


def supervised_contrast(
    features: Tensor,
    label: Tensor,
    others: Tensor | None = None,
    other_label: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    """Return L_scl, by which bags of one class come closer than bags of two (arXiv 2004.11362).

    An anchor is compared with the rest of the batch and with the others. The mean is over the anchors that have a
    positive, and 0 if none has. features: [B, E] of the anchors, label: [B], others: [M, E], other_label: [M].
    """
    rivals = features if others is None else torch.cat([features, others])  # [B+M, E]
    rival_label = label if other_label is None else torch.cat([label, other_label])  # [B+M]
    similarity = normalize(features, dim=1) @ normalize(rivals, dim=1).t() / temperature  # [B, B+M]
    itself = torch.eye(*similarity.shape, dtype=torch.bool, device=features.device)
    lowest = torch.finfo(similarity.dtype).min  # not -inf, which gives NaN for a bag alone
    log_share = similarity - similarity.masked_fill(itself, lowest).logsumexp(dim=1, keepdim=True)
    positive = (label.unsqueeze(1) == rival_label) & ~itself  # [B, B+M]
    count = positive.sum(dim=1)  # [B]
    anchor_loss = -log_share.masked_fill(~positive, 0).sum(dim=1) / count.clamp(min=1)  # [B]
    return anchor_loss.sum() / (count > 0).sum().clamp(min=1)


class HierarchicalLoss(nn.Module):
    """CE_fine + β (CE_coarse + L_ia + L_ba) + (1 - β) L_scl, with β = 1 - e/E in epoch e of E, counted from 0.

    L_scl contrasts the bag's feature vector of its label's class. This choice is ours, and so is the memory: a batch of
    one bag holds nothing to contrast, so earlier bags are kept, without gradient. With a memory longer than an epoch a
    bag meets its own earlier features.

    Args:
        hierarchy: Coarse class → list of its fine classes, as the network's.
        parts: Which of "CE_coarse", "L_ia", "L_ba", "L_scl" to add to CE_fine; none gives a flat classifier.
        beta: Fixed β within [0, 1]; without it β follows `progress` = e/E, which the handler Curriculum sets.
        temperature: Of L_scl.
        memory: How many earlier bags L_scl contrasts with; 0 = the batch alone, as in the paper.
        class_weights: Weight of a bag of each fine class in CE_fine.
    """

    membership: Tensor  # [C, F]

    def __init__(
        self,
        hierarchy: Hierarchy,
        parts: Sequence[str] = HMIL_PARTS,
        beta: Optional[float] = None,
        temperature: float = 0.1,
        memory: int = 64,
        class_weights: Optional[Sequence[float]] = None,
    ) -> None:
        super().__init__()
        for part in parts:
            if part not in HMIL_PARTS:
                raise ValueError(f"parts hold {part!r}: some of {', '.join(HMIL_PARTS)} are wanted")
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

    def get_extra_state(self) -> Optional[tuple[Tensor, Tensor]]:
        """Return the memory, so that a resumed training contrasts with the bags that it had met."""
        return self.remembered

    def set_extra_state(self, state: Optional[tuple[Tensor, Tensor]]) -> None:
        self.remembered = state

    @property
    def beta(self) -> float:
        """β of the present epoch."""
        if self.fixed_beta is not None:
            return self.fixed_beta
        if self.progress is None:
            raise ValueError("β is not known: give the trainer the handler Curriculum, or this loss a fixed beta")
        return 1 - self.progress

    def forward(self, prediction: HierarchicalPrediction, label: Tensor) -> Tensor:
        """Return the loss of a prediction; label: [B] or [B, 1], the number of the fine class."""
        label, member = label.flatten().long(), self.membership.to(label.device)
        coarse_label = member.argmax(dim=0)[label]  # [B]
        with torch.autocast(prediction.logits.device.type, enabled=False):  # half precision loses small attention
            logits, coarse_logits = prediction.logits.float(), prediction.coarse_logits.float()
            loss = self.fine(logits, label.unsqueeze(1))
            if "CE_coarse" in self.parts:
                loss = loss + self.beta * cross_entropy(coarse_logits, coarse_label)
            if "L_ia" in self.parts:
                attention, coarse_attention = prediction.attention.float(), prediction.coarse_attention.float()
                loss = loss + self.beta * instance_alignment(attention, coarse_attention, member)
            if "L_ba" in self.parts:
                loss = loss + self.beta * bag_alignment(logits, coarse_label, member)
            if "L_scl" in self.parts:
                own = prediction.features.float()[torch.arange(len(label), device=label.device), label]  # [B, E]
                loss = loss + (1 - self.beta) * self._contrast(own, label)
        return loss

    def _contrast(self, features: Tensor, label: Tensor) -> Tensor:
        others, other_label = self.remembered or (features[:0].detach(), label[:0])
        others, other_label = others.to(features), other_label.to(label)  # a resumed memory comes from a file
        loss = supervised_contrast(features, label, others, other_label, self.temperature)
        if features.requires_grad:  # bags of an evaluation must not enter the memory
            latest, latest_label = torch.cat([features.detach(), others]), torch.cat([label, other_label])
            self.remembered = latest[: self.memory], latest_label[: self.memory]
        return loss
