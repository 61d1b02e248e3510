# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""HMIL's formulas and hierarchies; its invariants are among those of test_mil.py."""

import pytest
import torch

from scripts.networks.hmil import HMIL, ClassAttention, Hierarchy, membership
from tests.networks.compositions import BRACS, FEATURES, close, network


def test_fine_classes_are_numbered_as_they_are_listed() -> None:
    assert membership(BRACS).tolist() == [[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1]]
    assert membership({"b": ["2", "1"], "a": ["0"]}).tolist() == [[1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("hierarchy", "problem"),
    [
        ({"benign": ["N"], "malignant": []}, "the coarse class 'malignant' needs a list of at least one fine class"),
        ({"benign": "PB", "malignant": ["IC"]}, "the coarse class 'benign' needs a list .* not 'PB'"),
        ({"benign": ["N", "PB"], "malignant": ["IC", "PB"]}, "the fine class 'PB' is listed twice"),
        ({"benign": ["N", "N"], "malignant": ["IC"]}, "the fine class 'N' is listed twice"),
        ({"all": ["N", "IC"]}, "two or more coarse classes, not 1"),
        (None, "configs/bracs.json"),
    ],
)
def test_a_hierarchy_that_is_none_is_refused_in_one_line(hierarchy: Hierarchy, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        HMIL(FEATURES, hierarchy)
    assert "\n" not in str(error.value)


def test_attention_of_each_class_is_the_formula_instance_by_instance() -> None:
    torch.manual_seed(0)
    branch, x = ClassAttention(4, 3, 5), torch.randn(1, 4, 7)
    v, u, w, c = branch.project, branch.gate, branch.weigh.weight, branch.classify
    logits, *parts = branch(x, torch.ones(1, 1, 7))
    for k in range(3):
        f = torch.stack([w[k] @ (torch.tanh(v(h)) * torch.sigmoid(u(h))) for h in x[0].t()])
        a = f.exp() / f.exp().sum()
        m = torch.stack([a[i] * x[0, :, i] for i in range(7)]).sum(dim=0)
        for part, wanted in zip(parts, (f, a, m), strict=True):
            close(part[0, k], wanted)
        close(logits[0, k], c.weight[k] @ m + c.bias[k])


def test_the_network_is_h1_and_h2_and_an_attention_on_each() -> None:
    net, x = network("HMIL"), torch.randn(FEATURES, 9)
    h1 = torch.stack([torch.relu(net.widen.project(torch.relu(net.narrow.project(i)))) for i in x.t()], dim=1)
    h2 = torch.stack([torch.relu(net.refine.project(i)) for i in h1.t()], dim=1)
    coarse, fine = net.coarse(h1[None], torch.ones(1, 1, 9)), net.fine(h2[None], torch.ones(1, 1, 9))
    got = net.predict(x[None])
    for one, wanted in zip((got.logits, got.scores, got.attention, got.features), fine, strict=True):
        close(one, wanted)
    close(got.coarse_logits, coarse[0])
    close(got.coarse_attention, coarse[2])
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}  # nothing of the hierarchy
