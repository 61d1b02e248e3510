# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The loss of a bag label, and the smoothness losses LS1 and LS2: of SA-DMIL (arXiv 2307.09457), and without scale."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from scripts.networks.graph import Graph, laplacian, readable
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
VARIANTS = ("paper", "released", "scale_free")
LEAST_VARIANCE = 1e-8  # a variance below which scores count as all alike


def scale_free(f: Tensor, graph: Graph, penalty: str) -> Tensor:
    """Return LS1 or LS2 of each bag [B] in units of the variance of f there, which f → a f + c does not change.

    A penalty is fᵀ M f. Were f in random order it would be variance · tr M on average, so 2 fᵀ M f / (variance · tr M)
    is 2 without order, whatever the graph. For LS1 it is the mean of (f_i - f_j)² over neighbours / variance, twice
    Geary's C. Scores that are all alike get 2 as well: shrinking them is no answer. The variance is over instances that
    have neighbours; a bag without any gets 0. f: [B, 1, N].
    """
    weights = graph.weights.float()  # [B, K, N]
    degree = weights.sum(dim=1, keepdim=True)  # [B, 1, N], 0 in padding
    joined = degree > 0
    count = joined.sum(dim=2, keepdim=True)  # [B, 1, 1]
    f = f.float().masked_fill(~joined, 0.0)  # [B, 1, N]
    f = (f - f.sum(dim=2, keepdim=True) / count.clamp(min=1)).masked_fill(~joined, 0.0)  # centred
    variance = f.square().sum(dim=[1, 2]) / (count.flatten() - 1).clamp(min=1)  # [B]
    trace = degree if penalty == "LS1" else degree.square() + weights.square().sum(dim=1, keepdim=True)  # diagonal of M
    trace = trace.sum(dim=[1, 2])  # [B]
    above = PENALTIES[penalty](f, graph) + LEAST_VARIANCE * trace  # [B]
    return 2 * above / ((variance + LEAST_VARIANCE) * torch.where(trace > 0, trace, torch.ones_like(trace)))


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
        """Return the loss of logits [B, C]; label: [B, C] of 0 and 1, or [B, 1] the number of the class where C > 1.

        A label of a class that there is not is refused in the host's memory; a GPU is not asked.
        """
        if logits.shape[1] > 1 and label.shape[1] == 1:
            loss = cross_entropy(logits, label[:, 0].long(), reduction="none").unsqueeze(1)  # [B, 1]
        else:
            if readable(label) and float(label.max()) > 1:
                problem = f"a label of class {int(label.max())} for one logit"
                raise ValueError(f"{problem}: name configs/classes.json or hmil.json")
            loss = binary_cross_entropy_with_logits(logits, label, reduction="none")  # [B, C]
        if self.class_weights is None:
            return loss.mean()
        count, classes = len(self.class_weights), max(2, logits.shape[1] if label.shape[1] == 1 else 2)
        if count < classes:
            raise ValueError(f"{count} class weights for {classes} classes: give one each")
        return (loss * self.class_weights.to(label.device, non_blocking=True)[label.long()]).mean()


class SmoothMILLoss(nn.Module):
    """(1 - alpha) · bag loss + alpha · penalty on the attention logits; alpha = 0 is the bag loss alone.

    The variant "released" is what the released code of SA-DMIL does: alpha weighs the bag loss, the penalty is on the
    attention after the softmax, and L = D + I - A, so alpha = 1 is the bag loss alone. Its chain includes the empty
    slots, as it does here if the network has `slots`. The variant "scale_free" is ours: the penalty in units of the
    scores' variance, as smaller scores alone would lower that of the paper.

    Args:
        alpha: Weight within [0, 1); in the released variant within (0, 1].
        penalty: "LS1" or "LS2".
        bag_loss: (logits, label) → loss; by default BagCrossEntropy.
        variant: "paper", "released" or "scale_free".
    """

    def __init__(
        self, alpha: float = 0.5, penalty: str = "LS1", bag_loss: Optional[nn.Module] = None, variant: str = "paper"
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}: one of {', '.join(VARIANTS)} is wanted")
        self.variant = variant
        self.penalty_weight = 1 - alpha if variant == "released" else alpha
        if not 0 <= self.penalty_weight < 1:
            allowed = "more than 0 and at most 1" if variant == "released" else "at least 0 and less than 1"
            raise ValueError(f"alpha is {alpha}: it must be {allowed}, or no label is learned")
        if penalty not in PENALTIES:
            raise ValueError(f"penalty is {penalty!r}: one of {', '.join(PENALTIES)} is wanted")
        self.penalty = penalty
        self.bag_loss = BagCrossEntropy() if bag_loss is None else bag_loss

    def forward(self, prediction: BagPrediction, label: Tensor) -> Tensor:
        """Return the loss of a prediction; label as in BagCrossEntropy."""
        loss = self.bag_loss(prediction.logits, label)
        if self.penalty_weight == 0:
            return loss
        return (1 - self.penalty_weight) * loss + self.penalty_weight * self._penalty(prediction).mean()

    def _penalty(self, prediction: BagPrediction) -> Tensor:
        """The penalty of each bag, [B]."""
        if self.variant == "scale_free":
            return scale_free(prediction.scores, prediction.graph, self.penalty)
        if self.variant == "released":
            return PENALTIES[self.penalty](prediction.attention, prediction.graph, 1.0)
        return PENALTIES[self.penalty](prediction.scores, prediction.graph)
