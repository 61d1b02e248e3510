# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Several trained networks of one architecture as one network, such as those of the folds of a cross-validation."""

import copy
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor, nn

from scripts.networks.mil import BagNetwork, BagPrediction


class Ensemble(BagNetwork):
    """The mean of its members: of their calibrated logits, slope · logit + intercept, of their scores and attention.

    Its evidence is the mean of slope · evidence, and its bias that of slope · bias + intercept: they sum to its logit.

    Args:
        kind: What every member is, a network with `predict`.
        members: How many there are.
        parts: The arguments of a member, by name. They stand beside `kind`, so that a config in which one part of a
            network refers to another, as `@network_def#encoder.out_features`, reads the same for an ensemble of it.
    """

    def __init__(self, kind: Callable[..., nn.Module], members: int, **parts: Any) -> None:
        super().__init__()
        if members < 1:
            raise ValueError(f"an ensemble of {members} networks: give 1 or more")
        member: Any = kind(**parts)
        self.slots: Optional[int] = getattr(member, "slots", None)
        self.spatial_dims = int(getattr(member, "spatial_dims", 0))
        self.members = nn.ModuleList([member, *(copy.deepcopy(member) for _ in range(members - 1))])
        self.slope: Tensor
        self.intercept: Tensor
        self.register_buffer("slope", torch.ones(members))
        self.register_buffer("intercept", torch.zeros(members))

    def __prepare_scriptable__(self) -> "Ensemble":
        """Give TorchScript a copy: it replaces the members, and mistakes others for those that are no longer there."""
        plain = copy.deepcopy(self)
        plain.replaced = tuple(plain.members)  # type: ignore[assignment]
        return plain

    @torch.jit.export
    def predict(self, image: Tensor, coords: Optional[Tensor] = None, mask: Optional[Tensor] = None) -> BagPrediction:
        """Predict bags; the arguments are those of `forward`."""
        predictions: list[BagPrediction] = []
        for k, member in enumerate(self.members):
            p = member.predict(image, coords, mask)  # type: ignore[operator]
            slope, intercept = self.slope[k], self.intercept[k]
            own, shares, left_out = p.instance_logits, p.evidence, p.leave_one_out
            predictions.append(
                BagPrediction(
                    slope * p.logits + intercept,
                    p.scores,
                    p.attention,
                    p.graph,
                    None if own is None else slope * own + intercept,
                    None if shares is None else slope * shares,
                    None if left_out is None else slope * left_out,
                )
            )
        return BagPrediction(
            torch.stack([p.logits for p in predictions]).mean(dim=0),
            torch.stack([p.scores for p in predictions]).mean(dim=0),
            torch.stack([p.attention for p in predictions]).mean(dim=0),
            predictions[0].graph,  # whose neighbours are the same for all
            mean_of([p.instance_logits for p in predictions]),
            mean_of([p.evidence for p in predictions]),
            mean_of([p.leave_one_out for p in predictions]),
        )


def mean_of(parts: list[Optional[Tensor]]) -> Optional[Tensor]:
    """Return the mean of what all members tell, None where they tell nothing."""
    known: list[Tensor] = []
    for part in parts:
        if part is not None:
            known.append(part)
    return torch.stack(known).mean(dim=0) if len(known) > 0 else None
