# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Whether attention has collapsed: all but the same for every instance of a bag, it tells none from another."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import nn

from scripts.core.record import BagResult
from scripts.networks.pooling import MeanPool

COLLAPSED = 0.01  # spread of attention × N

logger = logging.getLogger(__name__)


class AttentionSpread(Metric):
    """The standard deviation of attention × N, averaged over the bags with more than one instance; NaN without any.

    Args:
        output_transform: from what the validator gives to its results, of BagResultd.
    """

    def __init__(self, output_transform: Callable[[Any], Sequence[BagResult]]) -> None:
        super().__init__(output_transform)

    @reinit__is_reduced
    def reset(self) -> None:
        self.total, self.bags = 0.0, 0

    @reinit__is_reduced
    def update(self, output: Sequence[BagResult]) -> None:
        spreads = [result.attention_spread for result in output if len(result.attention) > 1]
        self.total += sum(spreads)
        self.bags += len(spreads)

    @sync_all_reduce("total", "bags")
    def compute(self) -> float:
        return self.total / self.bags if self.bags else math.nan


def warn_of_collapse(kept: Mapping[str, float] | None, network: nn.Module) -> None:
    """Warn if the attention of the epoch that was kept is all but the same everywhere, and say what to try.

    Args:
        kept: the metrics of that epoch, val_attention_spread among them; None or without it nothing is known.
        network: that was trained; mean pooling weighs all instances alike, as it should.
    """
    spread = (kept or {}).get("val_attention_spread", math.inf)
    inner = getattr(network, "module", network)  # DDP wraps the network
    if spread < COLLAPSED and not any(isinstance(part, MeanPool) for part in inner.modules()):
        logger.warning(
            "attention has collapsed: in the kept epoch attention × N deviates by %.2g on the validation bags, so it "
            "tells no instance from another; with a smooth loss try --variant scale_free or a smaller --alpha, else a "
            "larger --learning_rate or more --max_epochs; own logits, the default --score, do not rest on attention",
            spread,
        )
