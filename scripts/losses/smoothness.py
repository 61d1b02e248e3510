# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The loss of a bag label, and the smoothness losses LS1 and LS2 of SA-DMIL (arXiv 2307.09457)."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from scripts.networks.graph import Graph, laplacian
from scripts.networks.mil import BagPrediction


def ls1(f: Tensor, graph: Graph, shift: float = 0.0) -> Tensor:
    """Return fᵀ (L + shift I) f of each bag [B]; without a shift Σ over neighbours (f_i - f_j)². f: [B, 1, N]."""
    f = f.float()  # differences of neighbours vanish in half precision
    return (f * (laplacian(f, graph) + shift * f)).sum(dim=[1, 2])


def ls2(f: Tensor, graph: Graph, shift: float = 0.0) -> Tensor:
    """Return |(L + shift I) f|² of each bag [B]; without a shift fᵀ L L f. f: [B, 1, N]."""
    f = f.float()
    return (laplacian(f, graph) + shift * f).square().sum(dim=[1, 2])


PENALTIES = {"LS1": ls1, "LS2": ls2}


class BagCrossEntropy(nn.Module):
    """Cross-entropy: binary for one logit or several labels, categorical for several classes of one label.

    Args:
        class_weights: Weight of a bag of class 0, 1, ...; 1 by default. The loss is Σ weight · loss / B, not divided by
            the sum of the weights, which would cancel them in batches of one bag.
    """

    def __init__(self, class_weights: Optional[Sequence[float]] = None) -> None:
        super().__init__()
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss of logits [B, C]; label: [B, C] of 0 and 1, or [B, 1] the number of the class where C > 1."""
        if logits.shape[1] > 1 and label.shape[1] == 1:
            loss = cross_entropy(logits, label[:, 0].long(), reduction="none").unsqueeze(1)  # [B, 1]
        else:
            if float(label.max()) > 1:
                problem = f"a label of class {int(label.max())} for one logit"
                raise ValueError(f"{problem}: name configs/classes.json or hmil.json")
            loss = binary_cross_entropy_with_logits(logits, label, reduction="none")  # [B, C]
        if self.class_weights is None:
            return loss.mean()
        count, highest = len(self.class_weights), int(label.max())
        if highest >= count:
            raise ValueError(f"{count} class weights, and a label of class {highest}: give one each")
        return (loss * self.class_weights.to(label.device)[label.long()]).mean()


class SmoothMILLoss(nn.Module):
    """(1 - alpha) · bag loss + alpha · penalty on the attention logits; alpha = 0 is the bag loss alone.

    The variant "released" is what the released code of SA-DMIL does: alpha weighs the bag loss, the penalty is on the
    attention after the softmax, and L = D + I - A, so alpha = 1 is the bag loss alone. Its chain includes the empty
    slots, as it does here if the network has `slots`.

    Args:
        alpha: Weight within [0, 1); in the released variant within (0, 1].
        penalty: "LS1" or "LS2".
        bag_loss: (logits, label) → loss; by default BagCrossEntropy.
        variant: "paper" or "released".
    """

    def __init__(
        self, alpha: float = 0.5, penalty: str = "LS1", bag_loss: Optional[nn.Module] = None, variant: str = "paper"
    ) -> None:
        super().__init__()
        if variant not in ("paper", "released"):
            raise ValueError(f"variant is {variant!r}: 'paper' or 'released' is wanted")
        self.released = variant == "released"
        self.penalty_weight = 1 - alpha if self.released else alpha
        if not 0 <= self.penalty_weight < 1:
            allowed = "more than 0 and at most 1" if self.released else "at least 0 and less than 1"
            raise ValueError(f"alpha is {alpha}: it must be {allowed}, or no label is learned")
        if penalty not in PENALTIES:
            raise ValueError(f"penalty is {penalty!r}: one of {', '.join(PENALTIES)} is wanted")
        self.penalty = PENALTIES[penalty]
        self.bag_loss = BagCrossEntropy() if bag_loss is None else bag_loss

    def forward(self, prediction: BagPrediction, label: Tensor) -> Tensor:
        """Return the loss of a prediction; label as in BagCrossEntropy."""
        loss = self.bag_loss(prediction.logits, label)
        if self.penalty_weight == 0:
            return loss
        f, shift = (prediction.attention, 1.0) if self.released else (prediction.scores, 0.0)
        penalty = self.penalty(f, prediction.graph, shift)  # [B]
        return (1 - self.penalty_weight) * loss + self.penalty_weight * penalty.mean()
