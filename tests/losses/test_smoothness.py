# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from scripts.losses import BagCrossEntropy, SmoothMILLoss, ls1, ls2
from scripts.networks import BagPrediction, Features, GatedAttentionPool, MILNetwork, build_graph

F = torch.tensor([[[1.0, 3.0, 2.0, 2.0]]])
CHAIN = build_graph(torch.arange(4.0).view(1, 1, 4))


def prediction(logit: float = 0.3, f: Tensor = F) -> BagPrediction:
    return BagPrediction(torch.tensor([[logit]]), f, torch.softmax(f, dim=2), CHAIN)


def test_ls1_is_the_sum_of_squared_differences_of_neighbours() -> None:
    assert ls1(F, CHAIN).tolist() == [2**2 + 1**2 + 0**2]


def test_ls2_is_the_squared_length_of_lf() -> None:
    """L f = (1-3, 2·3-1-2, 2·2-3-2, 2-2) = (-2, 3, -1, 0)."""
    assert ls2(F, CHAIN).tolist() == [4 + 9 + 1 + 0]


def test_both_against_the_dense_laplacian() -> None:
    lap = torch.tensor([[1.0, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 1]])
    f = torch.randn(1, 1, 4)
    torch.testing.assert_close(ls1(f, CHAIN)[0], f[0, 0] @ lap @ f[0, 0])
    torch.testing.assert_close(ls2(f, CHAIN)[0], f[0, 0] @ lap @ lap @ f[0, 0])


def test_padding_and_a_common_shift_cost_nothing() -> None:
    mask = torch.tensor([[[1.0, 1, 1, 1, 0, 0]]])
    graph = build_graph(torch.arange(6.0).view(1, 1, 6), mask)
    longer = torch.cat([F, torch.tensor([[[50.0, -50.0]]])], dim=2)
    for penalty in (ls1, ls2):
        torch.testing.assert_close(penalty(longer, graph), penalty(F, CHAIN))
        torch.testing.assert_close(penalty(F + 11, CHAIN), penalty(F, CHAIN))


@pytest.mark.parametrize(("penalty", "value"), [("LS1", 5.0), ("LS2", 14.0)])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5])
def test_alpha_weighs_the_penalty_against_the_label(penalty: str, value: float, alpha: float) -> None:
    label = torch.tensor([[1.0]])
    cross_entropy = float(torch.log1p(torch.exp(torch.tensor(-0.3))))
    got = SmoothMILLoss(alpha, penalty)(prediction(), label)
    assert got.item() == pytest.approx((1 - alpha) * cross_entropy + alpha * value, rel=1e-6)


@pytest.mark.parametrize("penalty", ["LS1", "LS2"])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_the_released_variant_is_what_the_released_code_does(penalty: str, alpha: float) -> None:
    """alpha on the label, the penalty on the attention, L = D + I - A."""
    lap = torch.tensor([[2.0, -1, 0, 0], [-1, 3, -1, 0], [0, -1, 3, -1], [0, 0, -1, 2]])
    s = torch.softmax(F, dim=2)[0, 0]
    smoothness = s @ lap @ s if penalty == "LS1" else s @ lap @ lap @ s
    cross_entropy = torch.log1p(torch.exp(torch.tensor(-0.3)))
    got = SmoothMILLoss(alpha, penalty, variant="released")(prediction(), torch.tensor([[1.0]]))
    torch.testing.assert_close(got, alpha * cross_entropy + (1 - alpha) * smoothness)


def test_the_released_variant_runs_over_all_slots_of_a_network_that_has_them() -> None:
    """And over the real slices alone where there are none."""
    torch.manual_seed(0)
    image, label = torch.randn(1, 4, 3), torch.zeros(1, 1)
    loss = SmoothMILLoss(0.5, variant="released")
    for slots, n in ((None, 3), (6, 6)):
        network = MILNetwork(Features(4), GatedAttentionPool(4, 2), torch.nn.Linear(4, 1), 1, slots=slots)
        said = network(image)
        s = said.attention[0, 0]
        assert s.shape == (n,)
        smoothness = s.diff().square().sum() + s.square().sum()
        bag_loss = torch.nn.functional.binary_cross_entropy_with_logits(said.logits, label)
        torch.testing.assert_close(loss(said, label), 0.5 * bag_loss + 0.5 * smoothness)


def test_bag_cross_entropy_fits_the_head() -> None:
    logits = torch.tensor([[0.2, -1.0, 0.5]])
    probabilities = torch.softmax(logits, dim=1)[0]
    one_of_three = BagCrossEntropy()(logits, torch.tensor([[2.0]]))
    torch.testing.assert_close(one_of_three, -probabilities[2].log())
    each = torch.sigmoid(logits)[0]
    several = BagCrossEntropy()(logits, torch.tensor([[1.0, 0.0, 1.0]]))
    torch.testing.assert_close(several, -(each[0].log() + (1 - each[1]).log() + each[2].log()) / 3)
    single = BagCrossEntropy()(logits[:, :1], torch.tensor([[1.0]]))
    torch.testing.assert_close(single, -each[0].log())


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_class_weights_weigh_each_bag_by_its_class(bags: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits, label = torch.randn(bags, 3), torch.randint(3, (bags, 1))
    weights = [0.5, 2.0, 3.0]
    one_by_one = [
        cross_entropy(logit[None], number) * weights[int(number)] for logit, number in zip(logits, label, strict=True)
    ]
    assert float(BagCrossEntropy(weights)(logits, label)) == pytest.approx(
        float(torch.stack(one_by_one).mean()), rel=1e-5
    )
    binary = [
        binary_cross_entropy_with_logits(logit[:1], torch.ones(1) * bool(number)) * weights[int(bool(number))]
        for logit, number in zip(logits, label, strict=True)
    ]
    got = BagCrossEntropy(weights[:2])(logits[:, :1], (label > 0).float())
    assert float(got) == pytest.approx(float(torch.stack(binary).mean()), rel=1e-5)


def test_a_class_without_a_weight_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 class weights, and a label of class 2: give one each"):
        BagCrossEntropy([1.0, 2.0])(torch.zeros(1, 3), torch.tensor([[2]]))


def test_a_third_class_needs_a_logit_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"a label of class 2 for a network of one logit: name configs/classes"):
        BagCrossEntropy()(torch.zeros(1, 1), torch.tensor([[2.0]]))


def test_the_penalty_is_the_mean_over_scans() -> None:
    flat = torch.ones_like(F)
    two = BagPrediction(
        torch.zeros(2, 1), torch.cat([F, flat]), torch.cat([F, flat]), build_graph(torch.arange(4.0).expand(2, 1, 4))
    )
    label = torch.zeros(2, 1)
    got = SmoothMILLoss(0.5)(two, label) - 0.5 * torch.log(torch.tensor(2.0))
    assert got.item() == pytest.approx(0.5 * 5 / 2, rel=1e-6)


def test_the_gradient_reaches_the_scores() -> None:
    f = F.clone().requires_grad_()
    SmoothMILLoss(0.5)(prediction(f=f), torch.tensor([[0.0]])).backward()
    torch.testing.assert_close(f.grad, 0.5 * 2 * torch.tensor([[[-2.0, 3, -1, 0]]]))  # 2 L f, times alpha


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_alpha_out_of_range_is_an_error(alpha: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and less than 1"):
        SmoothMILLoss(alpha)


def test_released_alpha_of_0_is_an_error() -> None:
    with pytest.raises(ValueError, match="more than 0 and at most 1"):
        SmoothMILLoss(0, variant="released")


def test_an_unknown_variant_is_an_error() -> None:
    with pytest.raises(ValueError, match="'paper' or 'released' is wanted"):
        SmoothMILLoss(variant="original")


def test_smoothness_among_nobody_is_an_error() -> None:
    network = MILNetwork(Features(4), GatedAttentionPool(4, 2), torch.nn.Linear(4, 1))
    with pytest.raises(ValueError, match="the network uses no neighbours: give it spatial_dims"):
        SmoothMILLoss(0.5)(network(torch.randn(1, 4, 3)), torch.zeros(1, 1))


def test_an_unknown_penalty_is_an_error() -> None:
    with pytest.raises(ValueError, match="one of LS1, LS2"):
        SmoothMILLoss(penalty="LS3")
