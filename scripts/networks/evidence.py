# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What each instance adds to the answer: its share of the logit, its own logit, and the answer without it.

Of a bag with z = Σ w_i h_i and a linear head, logit = b + Σ w_i (u · h_i): the shares are exact, signed, and sum to the
logit less its bias. Attention has no sign: the instance with most of it may speak against the finding.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from scripts.networks.graph import filled

LINEAR = (nn.Linear, nn.Dropout, nn.Identity)


class Evidence(NamedTuple):
    """What is known of each instance in each class; None where the network tells no such thing."""

    own: Optional[Tensor]  # [B, C, N] the logit that it gets itself, u · h_i + b
    shares: Optional[Tensor]  # [B, C, N] e_i = w_i (u · h_i), which sum to the logit less its bias
    left_out: Optional[Tensor]  # [B, C, N] the logit less the logit without the instance


def is_linear(head: nn.Module) -> bool:
    """Return whether a head is linear in evaluation, its bias aside."""
    return all(isinstance(part, LINEAR) for part in head.modules() if not isinstance(part, nn.Sequential))


def of_linear(own: Tensor, bias: Tensor, weights: Tensor, mask: Optional[Tensor]) -> Evidence:
    """Return the evidence behind a linear head.

    Without instance i the others keep their weights, up to a factor so that these have the sum W of before:
    z_-i = (z - w_i h_i) W / (W - w_i). Softmax weights are then those of a bag without the instance.

    Args:
        own: [B, C, N], u · h_i + b.
        bias: [B or 1, C], b.
        weights: [B, 1 or C, N], w_i; 0 in padding.
        mask: [B, 1, N]; without it nothing is padded.
    """
    shares = weights * (own - bias.unsqueeze(2))  # [B, C, N]
    w, e = weights.double(), shares.double()
    without = sum_of_others(e) * factor(w.sum(dim=2, keepdim=True), sum_of_others(w))  # [B, C, N]
    return Evidence(filled(own, mask, 0.0), shares, (e.sum(dim=2, keepdim=True) - without).float())


class Sum(NamedTuple):
    """z = Σ w_i h_i, with what is needed to take an instance out of it."""

    z: Tensor  # [B, D]
    others: Tensor  # [B, D] float64, the sum without the instance of the largest weight: z less it would be rounding
    largest: Tensor  # [B, 1, 1] the number of that instance
    weights: Tensor  # [B, 1, N] float64
    scale: Tensor  # [B, 1, N] float64, what the others' weights grow by to sum to as much


def sum_of(z: Tensor, others: Tensor, weights: Tensor) -> Sum:
    """Return a sum z [B, D] by weights [B, 1, N], without the largest `others`, as instances are taken out of it."""
    w = weights.double()
    scale = factor(w.sum(dim=2, keepdim=True), sum_of_others(w))  # [B, 1, N]
    return Sum(z, others, weights.argmax(dim=2, keepdim=True), w, scale)


def without_largest(weights: Tensor) -> Tensor:
    """Return the weights [B, 1, N] in double precision, and 0 in place of the largest."""
    return weights.double().scatter(2, weights.argmax(dim=2, keepdim=True), 0.0)


def sum_without(of: Sum, x: Tensor, first: int) -> Tensor:
    """Return z without each of the instances x [B, D, n], of which the first has this number: [B, D, n]."""
    w, scale = of.weights[:, :, first : first + x.shape[2]], of.scale[:, :, first : first + x.shape[2]]  # [B, 1, n]
    rest = of.z.double().unsqueeze(2) - w * x.double()  # [B, D, n]
    is_largest = torch.arange(first, first + x.shape[2], device=x.device) == of.largest  # [B, 1, n]
    return (torch.where(is_largest, of.others.unsqueeze(2), rest) * scale).to(x.dtype)


def sum_of_others(x: Tensor) -> Tensor:
    """Return Σ_j≠i x_j of x [B, C, N]; beside one large instance the others are not lost to rounding."""
    at = torch.arange(x.shape[2], device=x.device) == x.abs().argmax(dim=2, keepdim=True)  # [B, C, N] the largest
    rest = x.masked_fill(at, 0.0).sum(dim=2, keepdim=True)  # [B, C, 1]
    largest = (x * at).sum(dim=2, keepdim=True)  # [B, C, 1]
    return torch.where(at, rest, rest - x + largest)


def factor(total: Tensor, left: Tensor) -> Tensor:
    """Return W / (W - w_i), and 0 where next to no weight is left."""
    return torch.where(left > 1e-30 * total, total / left, torch.zeros_like(left))


def second_largest(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Return the largest of the others for each instance, [B, D, N] of x [B, D, N]; 0 where there is no other."""
    alone = filled(x, mask, float("-inf"))
    first, place = alone.max(dim=2, keepdim=True)  # [B, D, 1]
    at = torch.arange(x.shape[2], device=x.device) == place  # [B, D, N]
    second = alone.masked_fill(at, float("-inf")).amax(dim=2, keepdim=True)  # [B, D, 1]
    others = torch.where(at, second, first)  # [B, D, N]
    return where_there_are_others(others, mask)


def where_there_are_others(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Return x [B, C, N], and 0 for a bag of one instance."""
    count = torch.ones_like(x[:, :1]) if mask is None else mask  # [B, 1, N]
    return torch.where((count > 0.5).sum(dim=2, keepdim=True) > 1, x, torch.zeros_like(x))
