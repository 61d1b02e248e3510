# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Losses on neighbouring slices: LS1 and LS2 of SA-DMIL (arXiv 2307.09457)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from scripts.networks.graph import Graph, laplacian
from scripts.networks.mil import BagPrediction


def ls1(f: Tensor, graph: Graph, shift: float = 0.0) -> Tensor:
    """fᵀ (L + shift I) f, for each bag; without a shift Σ over neighbours (f_i - f_j)². f: [B, 1, N] → [B]."""
    f = f.float()  # differences of neighbours vanish in half precision
    return (f * (laplacian(f, graph) + shift * f)).sum(dim=[1, 2])


def ls2(f: Tensor, graph: Graph, shift: float = 0.0) -> Tensor:
    """|(L + shift I) f|², for each bag; without a shift fᵀ L L f. f: [B, 1, N] → [B]."""
    f = f.float()
    return (laplacian(f, graph) + shift * f).square().sum(dim=[1, 2])


PENALTIES = {"LS1": ls1, "LS2": ls2}
VARIANTS = ("paper", "released")


class BagCrossEntropy(nn.Module):
    """Binary cross-entropy of one logit or of several labels; cross-entropy where several classes share one label.

    Args:
        class_weights: of class 0, 1, ..., how much a bag of it counts; 1 by default. The loss is Σ weight · loss / B:
            in batches of one bag, usual here, a mean weighted by itself would take every weight out again.
    """

    def __init__(self, class_weights: Optional[Sequence[float]] = None) -> None:
        super().__init__()
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """logits: [B, C], label: [B, C] of 0 and 1, or [B, 1] the number of the class where C > 1."""
        if logits.shape[1] > 1 and label.shape[1] == 1:
            loss = cross_entropy(logits, label[:, 0].long(), reduction="none").unsqueeze(1)  # [B, 1]
        else:
            if float(label.max()) > 1:
                raise ValueError(
                    f"a label of class {int(label.max())} for a network of one logit: name configs/classes.json or "
                    "configs/hmil.json behind train.json"
                )
            loss = binary_cross_entropy_with_logits(logits, label, reduction="none")  # [B, C]
        return (loss * weights_of(self.class_weights, label)).mean()


def weights_of(class_weights: Optional[Tensor], label: Tensor) -> Tensor:
    """How much each label counts, in the shape of the labels; 1 where no weights are given."""
    if class_weights is None:
        return torch.ones_like(label, dtype=torch.float)
    if int(label.max()) >= len(class_weights):
        raise ValueError(f"{len(class_weights)} class weights, and a label of class {int(label.max())}: give one each")
    return class_weights.to(label.device)[label.long()]


class SmoothMILLoss(nn.Module):
    """(1 - alpha) · bag loss + alpha · penalty on the scores; alpha = 0 is the bag loss alone.

    The released code of SA-DMIL does otherwise, and so does the variant of that name: alpha weighs the bag loss,
    the penalty is on the attention behind the softmax, and L = D + I - A. There alpha = 1 is the bag loss alone.
    Its chain runs over the empty slots too: so it does here if the network has `slots`.

    Args:
        alpha: weight, from 0 up to but not 1; in the released variant from 1 down to but not 0.
        penalty: "LS1" or "LS2".
        bag_loss: (logits, label) → loss; unless told otherwise BagCrossEntropy.
        variant: "paper" or "released".
    """

    def __init__(
        self,
        alpha: float = 0.5,
        penalty: str = "LS1",
        bag_loss: Optional[nn.Module] = None,
        variant: str = "paper",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}: 'paper' or 'released' is wanted")
        self.released = variant == "released"
        self.of_penalty = 1 - alpha if self.released else alpha
        if not 0 <= self.of_penalty < 1:
            allowed = "more than 0 and at most 1" if self.released else "at least 0 and less than 1"
            raise ValueError(f"alpha is {alpha}: it must be {allowed}, or no label is learned")
        if penalty not in PENALTIES:
            raise ValueError(f"penalty is {penalty!r}: one of {', '.join(PENALTIES)} is wanted")
        self.alpha = alpha
        self.penalty = PENALTIES[penalty]
        self.bag_loss = BagCrossEntropy() if bag_loss is None else bag_loss

    def forward(self, prediction: BagPrediction, label: Tensor) -> Tensor:
        loss = self.bag_loss(prediction.logits, label)
        if self.of_penalty == 0:
            return loss
        if self.released:
            penalty = self.penalty(prediction.attention, prediction.graph, shift=1.0)  # [B]
        else:
            penalty = self.penalty(prediction.scores, prediction.graph)  # [B]
        return (1 - self.of_penalty) * loss + self.of_penalty * penalty.mean()
