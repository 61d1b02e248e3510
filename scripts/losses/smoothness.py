# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Losses on neighbouring slices: LS1 and LS2 of SA-DMIL (arXiv 2307.09457)."""

from __future__ import annotations

from typing import Optional

from torch import Tensor, nn

from scripts.networks.graph import Graph, laplacian
from scripts.networks.mil import BagPrediction


def ls1(f: Tensor, graph: Graph) -> Tensor:
    """fᵀ L f = Σ over neighbours (f_i - f_j)², for each bag. f: [B, 1, N] → [B]."""
    f = f.float()  # differences of neighbours vanish in half precision
    return (f * laplacian(f, graph)).sum(dim=[1, 2])


def ls2(f: Tensor, graph: Graph) -> Tensor:
    """fᵀ L L f = |L f|², for each bag. f: [B, 1, N] → [B]."""
    return laplacian(f.float(), graph).square().sum(dim=[1, 2])


PENALTIES = {"LS1": ls1, "LS2": ls2}


class SmoothMILLoss(nn.Module):
    """(1 - alpha) · bag loss + alpha · penalty on the scores; alpha = 0 is the bag loss alone.

    Args:
        alpha: weight of the penalty, from 0 up to but not 1.
        penalty: "LS1" or "LS2".
        bag_loss: (logits, label) → loss; binary cross-entropy unless told otherwise.
    """

    def __init__(self, alpha: float = 0.5, penalty: str = "LS1", bag_loss: Optional[nn.Module] = None) -> None:
        super().__init__()
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha is {alpha}: it must be at least 0 and less than 1, or no label is learned")
        if penalty not in PENALTIES:
            raise ValueError(f"penalty is {penalty!r}: one of {', '.join(PENALTIES)} is wanted")
        self.alpha = alpha
        self.penalty = PENALTIES[penalty]
        self.bag_loss = nn.BCEWithLogitsLoss() if bag_loss is None else bag_loss

    def forward(self, prediction: BagPrediction, label: Tensor) -> Tensor:
        loss = self.bag_loss(prediction.logits, label)
        if self.alpha == 0:
            return loss
        return (1 - self.alpha) * loss + self.alpha * self.penalty(prediction.scores, prediction.graph).mean()
