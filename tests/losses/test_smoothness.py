# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""LS1, LS2 and the loss of a bag label against the formulas of the paper and of the released code; without scale."""

from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from scripts.losses import BagCrossEntropy, SmoothMILLoss, ls1, ls2, scale_free
from scripts.metrics.energy import dirichlet_energy
from scripts.networks import BagPrediction, build_graph
from scripts.networks.graph import Graph, no_graph
from tests.networks.compositions import thorough

F = torch.tensor([[[1.0, 3.0, 2.0, 2.0]]])
CHAIN = build_graph(torch.arange(4.0).view(1, 1, 4))
LAPLACIAN = torch.tensor([[1.0, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 1]])  # D - A
BCE = torch.log1p(torch.exp(torch.tensor(-0.3)))  # of the logit 0.3 and a positive label


def copies(graph: Graph, bags: int) -> Graph:
    return Graph(graph.neighbours.expand(bags, -1, -1), graph.weights.expand(bags, -1, -1), graph.chain)


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


UNEVEN = torch.tensor([[[0.0, 1, 4, 5, 9, 0, 0]]])  # millimetres along a scan: near slices weigh more
PADDED = build_graph(UNEVEN, torch.tensor([[[1.0, 1, 1, 1, 1, 0, 0]]]), spacing=True)
both = pytest.mark.parametrize("penalty", ["LS1", "LS2"])


@both
@thorough
@given(st.integers(0, 10**6), st.floats(0.05, 100), st.booleans(), st.floats(-100, 100))
def test_without_scale_neither_a_factor_nor_a_shift_nor_padding_changes_the_penalty(
    penalty: str, seed: int, factor: float, turned: bool, shift: float
) -> None:
    f = torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(seed))
    f[1] = f[1].cumsum(dim=1)
    graph = copies(PADDED, 2)
    got = scale_free(f, graph, penalty)
    other = (-factor if turned else factor) * f + shift
    other[..., 5:] = float("nan")
    torch.testing.assert_close(scale_free(other, graph, penalty), got, rtol=2e-3, atol=2e-3)
    for k in range(2):  # and a batch is its bags one by one
        torch.testing.assert_close(scale_free(f[k : k + 1], PADDED, penalty), got[k : k + 1])


def test_without_scale_ls1_is_the_mean_over_neighbours_in_units_of_the_variance() -> None:
    f = torch.tensor([[[3.0, 1, -1, 2, 5, 70, -9]]])
    edges, squares = torch.tensor([1, 1 / 3, 1, 1 / 4]), torch.tensor([4.0, 4, 9, 9])
    wanted = (edges * squares).sum() / edges.sum() / f[0, 0, :5].var()
    torch.testing.assert_close(scale_free(f, PADDED, "LS1")[0], wanted)
    energy = dirichlet_energy(F[0, 0].numpy(), torch.tensor([[0, 1, 2], [1, 2, 3]]).numpy())
    assert scale_free(F, CHAIN, "LS1").item() == pytest.approx(2 * energy)


@both
def test_without_scale_every_order_of_the_scores_costs_2_on_average(penalty: str) -> None:
    values = torch.tensor([0.3, -2.0, 1.1, 4.0, 0.9, 0.0, 0.0])
    orders = torch.stack([values[[*order, 5, 6]] for order in permutations(range(5))]).unsqueeze(1)
    graph = copies(PADDED, len(orders))
    assert scale_free(orders, graph, penalty).mean().item() == pytest.approx(2, rel=1e-5)


@both
def test_without_scale_shrinking_never_pays_and_equal_scores_have_a_gradient(penalty: str) -> None:
    smooth = torch.sin(torch.arange(20.0) / 4).view(1, 1, 20)
    graph = build_graph(torch.arange(20.0).view(1, 1, 20))
    costs = [scale_free(10.0**-power * smooth + 3, graph, penalty).item() for power in range(12)]
    assert all(costs[0] <= cost + 1e-5 for cost in costs)
    assert costs[-1] == pytest.approx(2)
    lower = PREDICTION._replace(scores=F / 1000)
    assert SmoothMILLoss(0.5, penalty)(lower, torch.ones(1, 1)) < SmoothMILLoss(0.5, penalty)(
        PREDICTION, torch.ones(1, 1)
    )
    f = torch.full((2, 1, 4), 7.0, requires_grad=True)
    two = copies(CHAIN, 2)
    cost = scale_free(f, two, penalty)
    cost.sum().backward()
    assert cost.tolist() == [2, 2]
    assert f.grad is not None
    assert torch.equal(f.grad, torch.zeros_like(f))


@both
def test_without_scale_what_has_no_neighbour_plays_no_part(penalty: str) -> None:
    f, alone = torch.randn(1, 1, 5), torch.tensor([[[0.0, 0, 1, 1, 9], [0, 1, 0, 1, 9]]])
    graph, lattice = build_graph(alone), build_graph(alone[..., :4])
    with_it = torch.cat([f[..., :4], 50 + f[..., 4:]], dim=2).requires_grad_()
    cost = scale_free(with_it, graph, penalty)
    torch.testing.assert_close(cost, scale_free(f[..., :4], lattice, penalty))
    one = scale_free(with_it[..., :1], build_graph(torch.zeros(1, 1, 1)), penalty)
    assert one.tolist() == [0]
    (cost + one).sum().backward()
    assert with_it.grad is not None
    assert torch.isfinite(with_it.grad).all()


@both
def test_without_scale_alpha_weighs_as_in_the_paper(penalty: str) -> None:
    for alpha in (0.0, 0.25, 0.5):
        got = SmoothMILLoss(alpha, penalty, variant="scale_free")(PREDICTION, torch.ones(1, 1))
        torch.testing.assert_close(got, (1 - alpha) * BCE + alpha * scale_free(F, CHAIN, penalty)[0])


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
    with pytest.raises(ValueError, match="2 class weights for 3 classes: give one each"):
        BagCrossEntropy([1.0, 2.0])(torch.zeros(1, 3), torch.tensor([[2.0]]))
    with pytest.raises(ValueError, match=r"a label of class 2 .* configs/classes"):
        BagCrossEntropy()(torch.zeros(1, 1), torch.tensor([[2.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, "at least 0 and less than 1"),
        ({"alpha": 0, "variant": "released"}, "more than 0 and at most 1"),
        ({"variant": "original"}, "one of paper, released, scale_free"),
        ({"penalty": "LS3"}, "one of LS1, LS2"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothMILLoss(**options)


def test_smoothness_without_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="give it spatial_dims"):
        SmoothMILLoss(0.5)(PREDICTION._replace(graph=no_graph(torch.ones(1, 1, 4))), torch.zeros(1, 1))
