# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scripts.networks.hmil import HMIL, ClassAttention, HierarchicalPrediction, Hierarchy, membership

BRACS = {"benign": ["N", "PB", "UDH"], "atypical": ["FEA", "ADH"], "malignant": ["DCIS", "IC"]}
FEATURES = 6
thorough = settings(max_examples=20, deadline=None)


def network() -> HMIL:
    torch.manual_seed(0)
    return HMIL(FEATURES, BRACS, embed_features=8, hidden_features=5).eval()


@st.composite
def bags(draw: st.DrawFn) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(FEATURES, draw(st.integers(1, 12)), generator=generator)


def padded(all_bags: list[Tensor], spare: int) -> tuple[Tensor, Tensor]:
    """One batch [B, D, N] and its mask [B, 1, N]; padding holds nonsense."""
    n = max(x.shape[1] for x in all_bags) + spare
    image, mask = torch.full((len(all_bags), FEATURES, n), 7.0), torch.zeros(len(all_bags), 1, n)
    for b, x in enumerate(all_bags):
        image[b, :, : x.shape[1]], mask[b, :, : x.shape[1]] = x, 1
    return image, mask


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


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
        ({}, "two or more coarse classes, not 0"),
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
    got = branch(x, torch.ones(1, 1, 7))
    for k in range(3):
        f = torch.stack([w[k] @ (torch.tanh(v(h)) * torch.sigmoid(u(h))) for h in x[0].t()])
        a = f.exp() / f.exp().sum()
        m = torch.stack([a[i] * x[0, :, i] for i in range(7)]).sum(dim=0)
        close(got.scores[0, k], f)
        close(got.attention[0, k], a)
        close(got.features[0, k], m)
        close(got.logits[0, k], c.weight[k] @ m + c.bias[k])


def test_the_network_is_h1_and_h2_and_an_attention_on_each() -> None:
    """The whole paper, one instance after the other."""
    net, x = network(), torch.randn(FEATURES, 9)
    h1 = torch.stack([torch.relu(net.widen.project(torch.relu(net.narrow.project(i)))) for i in x.t()], dim=1)
    h2 = torch.stack([torch.relu(net.refine.project(i)) for i in h1.t()], dim=1)
    everyone = torch.ones(1, 1, 9)
    coarse, fine = net.coarse(h1[None], everyone), net.fine(h2[None], everyone)
    got = net.predict(x[None])
    assert got.features.shape == (1, 7, 8)
    wanted = (fine.logits, fine.scores, fine.attention, coarse.logits, coarse.attention, fine.features)
    parts = (got.logits, got.scores, got.attention, got.coarse_logits, got.coarse_attention, got.features)
    for part, want in zip(parts, wanted, strict=True):
        close(part, want)


def test_a_logit_depends_on_the_feature_of_its_own_class_alone() -> None:
    x = torch.randn(1, 4, 7, requires_grad=True)
    branch = ClassAttention(4, 3, 5)
    branch.weigh.weight.register_hook(lambda grad: grads.append(grad))
    grads: list[Tensor] = []
    branch(x, torch.ones(1, 1, 7)).logits[0, 1].backward()
    assert grads[0].abs().sum(dim=1).gt(0).tolist() == [False, True, False]


@thorough
@given(several=st.lists(bags(), min_size=3, max_size=3))
def test_a_batch_is_its_bags_one_by_one_and_padding_changes_nothing(several: list[Tensor]) -> None:
    net = network()
    image, mask = padded(several, spare=2)
    together = net.predict(image, mask=mask)
    for b, x in enumerate(several):
        alone, n = net.predict(x[None]), x.shape[1]
        close(together.logits[b], alone.logits[0])
        close(together.coarse_logits[b], alone.coarse_logits[0])
        close(together.features[b], alone.features[0])
        close(together.scores[b, :, :n], alone.scores[0])
        for got, want in ((together.attention, alone.attention), (together.coarse_attention, alone.coarse_attention)):
            close(got[b, :, :n], want[0])
            close(got[b].sum(dim=1), torch.ones(got.shape[1]))
            assert got[b, :, n:].sum() == 0


@thorough
@given(x=bags(), data=st.data())
def test_permuting_instances_permutes_scores_and_keeps_logits(x: Tensor, data: st.DataObject) -> None:
    net, order = network(), torch.tensor(data.draw(st.permutations(range(x.shape[1]))))
    before, after = net.predict(x[None]), net.predict(x[None][..., order])
    close(after.logits, before.logits)
    close(after.coarse_logits, before.coarse_logits)
    close(after.features, before.features)
    close(after.scores, before.scores[..., order])
    close(after.attention, before.attention[..., order])
    close(after.coarse_attention, before.coarse_attention[..., order])


def test_scripted_is_eager() -> None:
    net = network()
    scripted = torch.jit.script(net)
    for n in (1, 2, 9):
        x, mask = torch.randn(2, FEATURES, n), torch.ones(2, 1, n)
        mask[1, :, 1:] = 0
        close(scripted(x, None, mask), net(x, None, mask))
        scripted_prediction, prediction = scripted.predict(x, None, mask), net.predict(x, None, mask)
        for field in ("scores", "attention", "coarse_logits", "coarse_attention", "features"):
            close(getattr(scripted_prediction, field), getattr(prediction, field))


def test_exported_once_it_takes_any_number_of_instances() -> None:
    net, x, mask = network(), torch.randn(1, FEATURES, 5), torch.ones(1, 1, 5)
    n = torch.export.Dim("n", min=1)
    exported = torch.export.export(net, (x, None, mask), dynamic_shapes=({2: n}, None, {2: n})).module()
    for count in (1, 2, 17):
        x, mask = torch.randn(1, FEATURES, count), torch.ones(1, 1, count)
        close(exported(x, None, mask), net(x, None, mask))


def test_coords_change_nothing_and_one_instance_needs_nothing_but_itself() -> None:
    net, x = network(), torch.randn(1, FEATURES, 1)
    assert net(x).shape == (1, 7)
    assert net(x).isfinite().all()
    close(net(x, torch.full((1, 2, 1), 3.0)), net(x))
    close(net.predict(x).attention, torch.ones(1, 7, 1))


def test_training_gives_the_loss_everything_and_evaluation_gives_fine_logits() -> None:
    net, x = network(), torch.randn(2, FEATURES, 4)
    in_training = net.train()(x)
    assert isinstance(in_training, HierarchicalPrediction)
    assert in_training.graph.neighbours.shape == (2, 0, 4)
    (in_training.logits.sum() + in_training.coarse_logits.sum()).backward()
    assert all(p.grad is not None for p in net.parameters())
    in_evaluation = net.eval()(x)
    assert isinstance(in_evaluation, Tensor)
    close(in_evaluation, in_training.logits)


def test_weights_hold_what_is_learned_and_nothing_of_the_hierarchy() -> None:
    assert set(network().state_dict()) == {name for name, _ in network().named_parameters()}


def test_features_of_another_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match="9 features per patch for a network of 6"):
        network()(torch.randn(1, 9, 3))
