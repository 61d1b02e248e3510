# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scripts.losses import HierarchicalLoss, bag_alignment, instance_alignment, supervised_contrast
from scripts.losses.hierarchical import HMIL_PARTS
from scripts.networks.graph import no_graph
from scripts.networks.hmil import HMIL, HierarchicalPrediction, membership

PAIRS = {"low": ["a", "b"], "high": ["c"]}
MEMBER = membership(PAIRS)


def prediction(bags: int = 2, features: Tensor | None = None) -> HierarchicalPrediction:
    torch.manual_seed(0)
    attention, coarse_attention = torch.rand(bags, 3, 4).softmax(dim=2), torch.rand(bags, 2, 4).softmax(dim=2)
    return HierarchicalPrediction(
        logits=torch.randn(bags, 3),
        scores=attention.log(),
        attention=attention,
        graph=no_graph(torch.ones(bags, 1, 4)),
        coarse_logits=torch.randn(bags, 2),
        coarse_attention=coarse_attention,
        features=torch.randn(bags, 3, 5) if features is None else features,
    )


class TestInstanceAlignment:
    def test_by_hand(self) -> None:
        """Coarse 0: (1, 1) against (1, 0), cosine 1/√2. Coarse 1: (1, 0) against (0, 1), cosine 0."""
        fine = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
        coarse = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        got = instance_alignment(fine, coarse, MEMBER)
        assert got.item() == pytest.approx(((1 - 1 / math.sqrt(2)) + 1) / 2)

    def test_a_sum_of_fine_attention_agrees_with_itself_whatever_its_length(self) -> None:
        fine = torch.rand(2, 3, 6)
        coarse = torch.stack([5 * (fine[:, 0] + fine[:, 1]), fine[:, 2]], dim=1)
        assert instance_alignment(fine, coarse, MEMBER).item() == pytest.approx(0, abs=1e-6)

    def test_both_branches_learn_from_it(self) -> None:
        fine, coarse = torch.rand(1, 3, 4, requires_grad=True), torch.rand(1, 2, 4, requires_grad=True)
        instance_alignment(fine, coarse, MEMBER).backward()
        assert fine.grad is not None
        assert coarse.grad is not None
        assert float(fine.grad.abs().sum()) > 0 < float(coarse.grad.abs().sum())


class TestBagAlignment:
    def test_by_hand(self) -> None:
        """Probabilities 1/2, 1/4, 1/4: the coarse classes have 3/4 and 1/4."""
        logits = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3
        assert bag_alignment(logits, torch.tensor([0]), MEMBER).item() == pytest.approx(math.log(4 / 3))
        assert bag_alignment(logits, torch.tensor([1]), MEMBER).item() == pytest.approx(math.log(4))
        both = bag_alignment(logits.expand(2, 3), torch.tensor([0, 1]), MEMBER)
        assert both.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)

    def test_far_logits_stay_finite(self) -> None:
        """Summed as probabilities these would be log(0)."""
        logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
        loss = bag_alignment(logits, torch.tensor([1]), MEMBER)
        loss.backward()
        assert loss.item() == pytest.approx(400)
        torch.testing.assert_close(logits.grad, torch.tensor([[1.0, 0.0, -1.0]]))

    def test_one_fine_class_each_is_cross_entropy(self) -> None:
        logits, label = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        torch.testing.assert_close(bag_alignment(logits, label, torch.eye(3)), cross_entropy(logits, label))


class TestSupervisedContrast:
    def test_by_hand(self) -> None:
        """Cosines at temperature 1: anchors 0 and 1 are each other's positive (0), 2 has none; lengths do not count."""
        z = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
        got = supervised_contrast(z, torch.tensor([4, 4, 6]), temperature=1)
        of_0 = -math.log(math.exp(0) / (math.exp(0) + math.exp(-1)))
        of_1 = -math.log(math.exp(0) / (math.exp(0) + math.exp(0)))
        assert got.item() == pytest.approx((of_0 + of_1) / 2)

    def test_against_the_formula_written_out(self) -> None:
        torch.manual_seed(0)
        z, label = torch.randn(7, 4), torch.tensor([0, 1, 0, 2, 1, 0, 3])
        unit, of_anchor = z / z.norm(dim=1, keepdim=True), []
        for i in range(7):
            rest = [j for j in range(7) if j != i]
            total = sum(math.exp(float(unit[i] @ unit[a]) / 0.1) for a in rest)
            shares = [math.exp(float(unit[i] @ unit[p]) / 0.1) / total for p in rest if label[p] == label[i]]
            if shares:
                of_anchor.append(-sum(math.log(share) for share in shares) / len(shares))
        assert len(of_anchor) == 5
        assert supervised_contrast(z, label).item() == pytest.approx(sum(of_anchor) / 5, rel=1e-5)

    @pytest.mark.parametrize(("bags", "label"), [(1, [2]), (3, [0, 1, 2])])
    def test_without_a_positive_it_is_zero_and_so_is_its_gradient(self, bags: int, label: list[int]) -> None:
        z = torch.randn(bags, 4, requires_grad=True)
        loss = supervised_contrast(z, torch.tensor(label))
        loss.backward()
        assert loss.item() == 0
        assert z.grad is not None
        assert float(z.grad.abs().sum()) == 0

    def test_a_batch_gives_the_same_from_memory(self) -> None:
        """One anchor against the rest, whether the rest is in the batch or remembered."""
        z, label = torch.randn(5, 4), torch.tensor([0, 0, 1, 0, 1])
        one_by_one = []
        for i in range(5):
            rest = torch.arange(5) != i
            one_by_one.append(supervised_contrast(z[i : i + 1], label[i : i + 1], z[rest], label[rest]))
        torch.testing.assert_close(torch.stack(one_by_one).mean(), supervised_contrast(z, label))

    def test_features_of_length_zero_stay_finite(self) -> None:
        z = torch.zeros(3, 4, requires_grad=True)
        supervised_contrast(z, torch.tensor([0, 0, 1])).backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()


def parts_by_hand(p: HierarchicalPrediction, label: Tensor) -> dict[str, float]:
    coarse = torch.tensor([0, 0, 1])[label]
    own = torch.stack([p.features[b, k] for b, k in enumerate(label)])
    return {
        "CE_fine": float(cross_entropy(p.logits, label)),
        "CE_coarse": float(cross_entropy(p.coarse_logits, coarse)),
        "L_ia": float(instance_alignment(p.attention, p.coarse_attention, MEMBER)),
        "L_ba": float(bag_alignment(p.logits, coarse, MEMBER)),
        "L_scl": float(supervised_contrast(own, label)),
    }


class TestHierarchicalLoss:
    @pytest.mark.parametrize("progress", [0.0, 0.25, 0.99])
    def test_beta_leads_from_coarse_to_fine(self, progress: float) -> None:
        p, label = prediction(3), torch.tensor([1, 1, 2])
        loss, of = HierarchicalLoss(PAIRS), parts_by_hand(p, label)
        loss.progress = progress
        coarse = of["CE_coarse"] + of["L_ia"] + of["L_ba"]
        wanted = of["CE_fine"] + (1 - progress) * coarse + progress * of["L_scl"]
        assert of["L_scl"] > 0
        assert loss(p, label).item() == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize("part", HMIL_PARTS)
    def test_each_part_can_stand_alone_beside_the_fine_label(self, part: str) -> None:
        p, label = prediction(3), torch.tensor([0, 2, 0])
        of = parts_by_hand(p, label)
        weight = 0.7 if part == "L_scl" else 0.3
        got = HierarchicalLoss(PAIRS, parts=[part], beta=0.3)(p, label)
        assert got.item() == pytest.approx(of["CE_fine"] + weight * of[part], rel=1e-5)

    def test_without_parts_it_is_a_flat_classifier(self) -> None:
        p, label = prediction(), torch.tensor([0, 2])
        torch.testing.assert_close(HierarchicalLoss(PAIRS, parts=[])(p, label), cross_entropy(p.logits, label))

    def test_a_label_may_be_a_column_and_a_float(self) -> None:
        p, label = prediction(), torch.tensor([0, 2])
        wanted = HierarchicalLoss(PAIRS, beta=0.5)(p, label)
        torch.testing.assert_close(HierarchicalLoss(PAIRS, beta=0.5)(p, label[:, None].float()), wanted)

    def test_autocast_changes_nothing(self) -> None:
        p, label = prediction(), torch.tensor([0, 2])
        with torch.autocast("cpu", torch.bfloat16):
            got = HierarchicalLoss(PAIRS, beta=0.5)(p, label)
        torch.testing.assert_close(got, HierarchicalLoss(PAIRS, beta=0.5)(p, label))

    def test_a_forgotten_curriculum_is_an_error_and_no_silent_one(self) -> None:
        with pytest.raises(ValueError, match="or this loss a fixed beta"):
            HierarchicalLoss(PAIRS)(prediction(), torch.tensor([0, 2]))

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [({"parts": ["L_bs"]}, "parts hold 'L_bs': some of CE_coarse"), ({"beta": 2}, "beta is 2")],
    )
    def test_bad_arguments_are_told(self, arguments: dict[str, Any], problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            HierarchicalLoss(PAIRS, **arguments)


class TestMemory:
    """Bags that come one by one."""

    LABELS = (0, 2, 0, 0, 2)

    def feature(self, i: int) -> Tensor:
        return torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(i)).requires_grad_()

    def contrast(self, loss: HierarchicalLoss, i: int, features: Tensor | None = None) -> Tensor:
        """What the loss adds to CE_fine for bag i."""
        p = prediction(1, self.feature(i) if features is None else features)
        label = torch.tensor([self.LABELS[i]])
        return loss(p, label) - cross_entropy(p.logits, label)

    @pytest.mark.parametrize("memory", [2, 3, 64])
    def test_a_bag_is_contrasted_with_the_latest_before_it(self, memory: int) -> None:
        loss = HierarchicalLoss(PAIRS, parts=["L_scl"], beta=0.0, memory=memory)
        got = [self.contrast(loss, i).item() for i in range(5)]
        assert got[:2] == [0, 0]  # nothing before it, then none of its class
        assert min(got[2], got[3], got[4]) > 0 or memory == 2
        own = [self.feature(i)[0, k].detach() for i, k in enumerate(self.LABELS)]
        for i in range(1, 5):
            before = range(max(0, i - memory), i)
            wanted = supervised_contrast(
                own[i][None], torch.tensor([self.LABELS[i]]),
                torch.stack([own[j] for j in before]), torch.tensor([self.LABELS[j] for j in before]),
            )  # fmt: skip
            assert got[i] == pytest.approx(wanted.item(), abs=1e-5)

    def test_the_gradient_stays_in_the_bag(self) -> None:
        loss, first, second = HierarchicalLoss(PAIRS, parts=["L_scl"], beta=0.0), self.feature(0), self.feature(2)
        self.contrast(loss, 0, first)
        self.contrast(loss, 1)
        self.contrast(loss, 2, second).backward()
        assert second.grad is not None
        assert second.grad[0].abs().sum(dim=1).gt(0).tolist() == [True, False, False]  # its label's class alone
        assert first.grad is None or float(first.grad.abs().sum()) == 0

    def test_without_a_memory_a_lone_bag_contrasts_with_nothing(self) -> None:
        loss = HierarchicalLoss(PAIRS, parts=["L_scl"], beta=0.0, memory=0)
        assert [self.contrast(loss, i).item() for i in range(5)] == [0] * 5

    def test_bags_of_an_evaluation_are_not_remembered(self) -> None:
        loss = HierarchicalLoss(PAIRS, parts=["L_scl"], beta=0.0)
        self.contrast(loss, 0, self.feature(0).detach())
        assert loss.remembered is None


def test_every_part_teaches_the_network() -> None:
    """One bag, then another: each parameter has a finite gradient, and some of it is not 0."""
    torch.manual_seed(0)
    net, loss = HMIL(6, PAIRS, embed_features=8, hidden_features=5).train(), HierarchicalLoss(PAIRS, beta=0.5)
    for label in (0, 0):
        net.zero_grad()
        loss(net(torch.randn(1, 6, 9)), torch.tensor([[label]])).backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert float(parameter.grad.abs().sum()) > 0, name


def test_class_weights_weigh_the_fine_cross_entropy() -> None:
    said, label = prediction(), torch.tensor([2, 0])
    each = cross_entropy(said.logits, label, reduction="none")
    got = HierarchicalLoss(PAIRS, parts=(), beta=0.5, class_weights=[3.0, 1.0, 0.5])(said, label)
    assert got.item() == pytest.approx(float((0.5 * each[0] + 3 * each[1]) / 2))
