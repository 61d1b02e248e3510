# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""LS1, LS2 and the loss of a bag label against the formulas of the paper and of the released code."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from scripts.losses import BagCrossEntropy, SmoothMILLoss, ls1, ls2
from scripts.networks import BagPrediction, build_graph
from scripts.networks.graph import no_graph
from tests.networks.compositions import thorough

F = torch.tensor([[[1.0, 3.0, 2.0, 2.0]]])
CHAIN = build_graph(torch.arange(4.0).view(1, 1, 4))
LAPLACIAN = torch.tensor([[1.0, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 1]])  # D - A
BCE = torch.log1p(torch.exp(torch.tensor(-0.3)))  # of the logit 0.3 and a positive label


PREDICTION = BagPrediction(torch.tensor([[0.3]]), F, torch.softmax(F, dim=2), CHAIN)


def test_both_by_hand_and_against_the_dense_laplacian() -> None:
    assert ls1(F, CHAIN).tolist() == [2**2 + 1**2 + 0**2]  # squared differences of neighbours
    assert ls2(F, CHAIN).tolist() == [4 + 9 + 1 + 0]  # L f = (-2, 3, -1, 0)
    f = torch.randn(1, 1, 4)
    torch.testing.assert_close(ls1(f, CHAIN)[0], f[0, 0] @ LAPLACIAN @ f[0, 0])
    torch.testing.assert_close(ls2(f, CHAIN)[0], f[0, 0] @ LAPLACIAN @ LAPLACIAN @ f[0, 0])
    graph = build_graph(
        torch.arange(6.0).view(1, 1, 6), torch.tensor([[[1.0, 1, 1, 1, 0, 0]]])
    )  # padding costs nothing
    longer = torch.cat([F, torch.tensor([[[50.0, -50.0]]])], dim=2)
    for penalty in (ls1, ls2):
        torch.testing.assert_close(penalty(longer, graph), penalty(F, CHAIN))
        torch.testing.assert_close(penalty(F + 11, CHAIN), penalty(F, CHAIN))


def test_alpha_weighs_the_penalty_against_the_label() -> None:
    """By the released variant alpha is on the label, the penalty on the attention, and L = D + I - A."""
    lap, s, label = LAPLACIAN + torch.eye(4), torch.softmax(F, dim=2)[0, 0], torch.ones(1, 1)
    for penalty, value, released in (("LS1", 5.0, s @ lap @ s), ("LS2", 14.0, s @ lap @ lap @ s)):
        for alpha in (0.0, 0.25, 0.5):
            got = SmoothMILLoss(alpha, penalty)(PREDICTION, label)
            torch.testing.assert_close(got, (1 - alpha) * BCE + alpha * value)
            got = SmoothMILLoss(1 - alpha, penalty, variant="released")(PREDICTION, label)
            torch.testing.assert_close(got, (1 - alpha) * BCE + alpha * released)


def test_the_penalty_is_the_mean_over_scans_and_its_gradient_reaches_the_scores() -> None:
    f = torch.cat([F, torch.ones_like(F)]).requires_grad_()
    two = BagPrediction(torch.zeros(2, 1), f, f, build_graph(torch.arange(4.0).expand(2, 1, 4)))
    loss = SmoothMILLoss(0.5)(two, torch.zeros(2, 1))
    torch.testing.assert_close(loss, 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * (5 + 0) / 2)
    loss.backward()
    torch.testing.assert_close(f.grad, 0.5 * F.matmul(LAPLACIAN) * torch.tensor([[[1.0]], [[0.0]]]))  # 2 L f · α / 2


@thorough
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_bag_cross_entropy_fits_the_head_and_class_weights_weigh_each_bag(bags: int, seed: int) -> None:
    """Categorical for several classes of one label; binary for one logit and for several labels."""
    torch.manual_seed(seed)
    logits, label, weights = torch.randn(bags, 3), torch.randint(3, (bags, 1)), torch.tensor([0.5, 2.0, 3.0])
    each = cross_entropy(logits, label[:, 0], reduction="none") * weights[label[:, 0]]
    torch.testing.assert_close(BagCrossEntropy(weights.tolist())(logits, label), each.mean())
    positive = (label > 0).float()
    binary = binary_cross_entropy_with_logits(logits[:, :1], positive, reduction="none") * weights[positive.long()]
    torch.testing.assert_close(BagCrossEntropy(weights[:2].tolist())(logits[:, :1], positive), binary.mean())
    several = torch.randint(2, (bags, 3)).float()
    torch.testing.assert_close(BagCrossEntropy()(logits, several), binary_cross_entropy_with_logits(logits, several))
    torch.testing.assert_close(BagCrossEntropy()(logits, label), cross_entropy(logits, label[:, 0]))


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 class weights, and a label of class 2"):
        BagCrossEntropy([1.0, 2.0])(torch.zeros(1, 3), torch.tensor([[2.0]]))
    with pytest.raises(ValueError, match=r"a label of class 2 .* configs/classes"):
        BagCrossEntropy()(torch.zeros(1, 1), torch.tensor([[2.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, "at least 0 and less than 1"),
        ({"alpha": 0, "variant": "released"}, "more than 0 and at most 1"),
        ({"variant": "original"}, "'paper' or 'released'"),
        ({"penalty": "LS3"}, "one of LS1, LS2"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothMILLoss(**options)


def test_smoothness_without_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="give it spatial_dims"):
        SmoothMILLoss(0.5)(PREDICTION._replace(graph=no_graph(torch.ones(1, 1, 4))), torch.zeros(1, 1))
