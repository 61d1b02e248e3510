# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of HMIL by hand, and how the whole weighs and remembers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scripts.losses import BagCrossEntropy, HierarchicalLoss, bag_alignment, instance_alignment, supervised_contrast
from scripts.losses.hierarchical import HMIL_PARTS
from scripts.networks.graph import no_graph
from scripts.networks.hmil import HMIL, HierarchicalPrediction, membership

PAIRS = {"low": ["a", "b"], "high": ["c"]}
MEMBER = membership(PAIRS)


def prediction(bags: int = 2, features: Tensor | None = None) -> HierarchicalPrediction:
    torch.manual_seed(0)
    attention, coarse_attention = torch.rand(bags, 3, 4).softmax(dim=2), torch.rand(bags, 2, 4).softmax(dim=2)
    logits, coarse_logits, graph = torch.randn(bags, 3), torch.randn(bags, 2), no_graph(torch.ones(bags, 1, 4))
    features = torch.randn(bags, 3, 5) if features is None else features
    return HierarchicalPrediction(logits, attention.log(), attention, graph, coarse_logits, coarse_attention, features)


def test_instance_alignment_by_hand() -> None:
    """Coarse 0: (1, 1) against (1, 0), cosine 1/√2. Coarse 1: (1, 0) against (0, 1), cosine 0."""
    fine, coarse = torch.tensor([[[1.0, 0], [0, 1.0], [1.0, 0]]]), torch.tensor([[[1.0, 0], [0, 1.0]]])
    assert instance_alignment(fine, coarse, MEMBER).item() == pytest.approx(((1 - 1 / math.sqrt(2)) + 1) / 2)
    sums = torch.stack([5 * (fine[:, 0] + fine[:, 1]), fine[:, 2]], dim=1)  # they agree, whatever their length
    assert instance_alignment(fine, sums, MEMBER).item() == pytest.approx(0, abs=1e-6)


def test_bag_alignment_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4: the coarse classes have 3/4 and 1/4; those of far logits would be log(0)."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3
    both = bag_alignment(logits.expand(2, 3), torch.tensor([0, 1]), MEMBER)
    assert both.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    far = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    loss = bag_alignment(far, torch.tensor([1]), MEMBER)
    loss.backward()
    assert loss.item() == pytest.approx(400)
    torch.testing.assert_close(far.grad, torch.tensor([[1.0, 0.0, -1.0]]))


def test_supervised_contrast_is_the_formula_written_out() -> None:
    """For each anchor alone against the others given, and for the batch."""
    torch.manual_seed(0)
    z, label, losses = torch.randn(7, 4), torch.tensor([0, 1, 0, 2, 1, 0, 3]), []
    unit = z / z.norm(dim=1, keepdim=True)
    for i in range(7):
        rest = [j for j in range(7) if j != i]
        total = sum(math.exp(float(unit[i] @ unit[a]) / 0.1) for a in rest)
        shares = [math.exp(float(unit[i] @ unit[p]) / 0.1) / total for p in rest if label[p] == label[i]]
        if shares:
            losses.append(-sum(math.log(share) for share in shares) / len(shares))
            alone = supervised_contrast(z[i : i + 1], label[i : i + 1], z[rest], label[rest])
            assert alone.item() == pytest.approx(losses[-1], rel=1e-5)
    assert len(losses) == 5
    assert supervised_contrast(z, label).item() == pytest.approx(sum(losses) / 5, rel=1e-5)


@pytest.mark.parametrize(
    ("z", "label"), [(torch.randn(1, 4), [2]), (torch.randn(3, 4), [0, 1, 2]), (torch.zeros(3, 4), [0, 0, 1])]
)
def test_contrast_is_zero_without_a_positive_and_its_gradient_is_finite(z: Tensor, label: list[int]) -> None:
    z = z.requires_grad_()
    loss = supervised_contrast(z, torch.tensor(label))
    loss.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    if len(set(label)) == len(label):
        assert (loss.item(), float(z.grad.abs().sum())) == (0, 0)


def parts_by_hand(p: HierarchicalPrediction, label: Tensor) -> dict[str, float]:
    coarse, own = torch.tensor([0, 0, 1])[label], torch.stack([p.features[b, k] for b, k in enumerate(label)])
    return {
        "CE_fine": float(cross_entropy(p.logits, label)),
        "CE_coarse": float(cross_entropy(p.coarse_logits, coarse)),
        "L_ia": float(instance_alignment(p.attention, p.coarse_attention, MEMBER)),
        "L_ba": float(bag_alignment(p.logits, coarse, MEMBER)),
        "L_scl": float(supervised_contrast(own, label)),
    }


def test_beta_leads_from_coarse_to_fine() -> None:
    p, label = prediction(3), torch.tensor([1, 1, 2])
    loss, of = HierarchicalLoss(PAIRS, memory=0), parts_by_hand(p, label)
    assert of["L_scl"] > 0
    coarse = of["CE_coarse"] + of["L_ia"] + of["L_ba"]
    for loss.progress in (0.0, 0.25, 0.99):
        wanted = of["CE_fine"] + (1 - loss.progress) * coarse + loss.progress * of["L_scl"]
        assert loss(p, label).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("part", [None, *HMIL_PARTS])
def test_each_part_can_stand_alone_beside_the_fine_label(part: str | None) -> None:
    """Or none, as a flat classifier; a label may be a column of floats, and autocast changes nothing."""
    p, label = prediction(3), torch.tensor([0, 2, 0])
    of = parts_by_hand(p, label)
    added = of[part] if part else 0.0
    weight = 0.7 if part == "L_scl" else 0.3
    loss = HierarchicalLoss(PAIRS, parts=[part] if part else [], beta=0.3, memory=0)
    with torch.autocast("cpu", torch.bfloat16):
        in_half = loss(p, label[:, None].float())
    assert loss(p, label).item() == in_half.item() == pytest.approx(of["CE_fine"] + weight * added, rel=1e-5)


def test_class_weights_weigh_the_fine_cross_entropy() -> None:
    p, weights = prediction(), [3.0, 1.0, 0.5]
    got = HierarchicalLoss(PAIRS, parts=(), beta=0.5, class_weights=weights)(p, torch.tensor([2, 0]))
    assert got == BagCrossEntropy(weights)(p.logits, torch.tensor([[2.0], [0.0]]))


def test_every_part_teaches_the_network() -> None:
    """One bag, then another: each parameter has a finite gradient, and some of it is not 0."""
    torch.manual_seed(0)
    net, loss = HMIL(6, PAIRS, embed_features=8, hidden_features=5).train(), HierarchicalLoss(PAIRS, beta=0.5)
    for _ in range(2):
        net.zero_grad()
        loss(net(torch.randn(1, 6, 9)), torch.tensor([[0]])).backward()
        sizes = {name: 0.0 if p.grad is None else float(p.grad.abs().sum()) for name, p in net.named_parameters()}
        assert all(0 < size < math.inf for size in sizes.values()), sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["L_bs"]}, "parts hold 'L_bs': some of CE_coarse"),
        ({"beta": 2}, "beta is 2"),
        ({}, "Curriculum, or this loss a fixed beta"),  # a forgotten curriculum is no silent one
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalLoss(PAIRS, **options)(prediction(), torch.tensor([0, 2]))


LABELS = (0, 2, 0, 0, 2)


def feature(i: int) -> Tensor:
    return torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(i)).requires_grad_()


def contrast(loss: HierarchicalLoss, i: int, features: Tensor | None = None) -> Tensor:
    """What the loss adds to CE_fine for bag i."""
    p, label = prediction(1, feature(i) if features is None else features), torch.tensor([LABELS[i]])
    return loss(p, label) - cross_entropy(p.logits, label)


@pytest.mark.parametrize("memory", [0, 2, 64])
def test_a_bag_is_contrasted_with_the_latest_before_it(memory: int) -> None:
    loss = HierarchicalLoss(PAIRS, parts=["L_scl"], beta=0.0, memory=memory)
    got = [contrast(loss, i).item() for i in range(5)]
    assert (max(got[2:]) > 0) == (memory > 0)
    own = torch.stack([feature(i)[0, k].detach() for i, k in enumerate(LABELS)])
    label = torch.tensor(LABELS)
    for i in range(5):
        before = slice(max(0, i - memory), i)
        wanted = supervised_contrast(own[i : i + 1], label[i : i + 1], own[before], label[before])
        assert got[i] == pytest.approx(wanted.item(), abs=1e-5)


def test_a_resumed_training_contrasts_with_the_bags_of_before() -> None:
    loss, resumed = (HierarchicalLoss(PAIRS, parts=["L_scl"], beta=0.0) for _ in range(2))
    for i in range(3):
        contrast(loss, i)
    resumed.load_state_dict(loss.state_dict())
    assert contrast(resumed, 3).item() == contrast(loss, 3).item() > 0


def test_the_gradient_stays_in_the_bag_and_an_evaluation_is_not_remembered() -> None:
    loss, first, second = HierarchicalLoss(PAIRS, parts=["L_scl"], beta=0.0), feature(0), feature(2)
    contrast(loss, 0, first.detach())
    assert loss.remembered is None
    contrast(loss, 0, first)
    contrast(loss, 1)
    contrast(loss, 2, second).backward()
    assert second.grad is not None
    assert second.grad[0].abs().sum(dim=1).gt(0).tolist() == [True, False, False]  # its label's class alone
    assert first.grad is None or float(first.grad.abs().sum()) == 0
