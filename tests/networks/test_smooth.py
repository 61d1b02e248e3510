# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.networks.graph import Graph, build_graph, no_graph
from scripts.networks.smooth import SmoothOperator
from tests.networks.compositions import bags
from tests.networks.test_graph import dense


def exact(x: torch.Tensor, graph: Graph, alpha: float) -> torch.Tensor:
    """(1 - α)(I - αÃ)^-1 X in float64, an isolated instance left as it is."""
    a = dense(graph).double()
    degree = a.sum(dim=0)
    scale = degree.clamp(min=1e-12).rsqrt().where(degree > 0, torch.zeros_like(degree))
    tilde = scale[:, None] * a * scale + torch.diag((degree == 0).double())
    solve = torch.linalg.solve(torch.eye(len(a)).double() - alpha * tilde, x[0].double().t())
    return ((1 - alpha) * solve).t()[None]


@pytest.mark.parametrize(("alpha", "steps"), [(0.1, 10), (0.5, 25), (0.9, 250)])
@pytest.mark.parametrize("spatial_dims", [1, 2])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_recursion_reaches_the_exact_solve(
    data: st.DataObject, spatial_dims: int, alpha: float, steps: int
) -> None:
    x, coords = data.draw(bags(spatial_dims))
    graph = build_graph(coords[None])
    got = SmoothOperator(alpha, steps)(x[None].double(), graph)
    torch.testing.assert_close(got, exact(x[None], graph, alpha), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("alpha", "error"), [(0.5, 2e-3), (0.7, 4e-2)])
def test_ten_steps_of_the_paper_are_close(alpha: float, error: float) -> None:
    coords = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")).flatten(1)[None]
    graph = build_graph(coords)
    x = torch.randn(1, 4, 144, generator=torch.Generator().manual_seed(0)).double()
    wanted = exact(x, graph, alpha)
    assert (SmoothOperator(alpha)(x, graph) - wanted).norm() < error * wanted.norm()


def test_isolated_instances_come_out_unchanged() -> None:
    coords = torch.tensor([[[0.0, 1.0, 40.0], [0.0, 0.0, 40.0]]])
    x = torch.randn(1, 5, 3)
    got = SmoothOperator(0.9)(x, build_graph(coords))
    torch.testing.assert_close(got[..., 2], x[..., 2])
    assert (got[..., :2] - x[..., :2]).abs().max() > 0.1


def test_more_alpha_is_smoother_and_none_is_the_identity() -> None:
    graph = build_graph(torch.arange(30.0).view(1, 1, 30))
    x = torch.randn(1, 1, 30, generator=torch.Generator().manual_seed(0))
    roughness = [float(SmoothOperator(a, 200)(x, graph).diff().square().sum()) for a in (1e-6, 0.3, 0.6, 0.9)]
    assert roughness == sorted(roughness, reverse=True)
    torch.testing.assert_close(SmoothOperator(1e-6)(x, graph), x, atol=1e-5, rtol=0)


def test_linear_and_symmetric() -> None:
    """⟨Sm(x), y⟩ = ⟨x, Sm(y)⟩: what lets "early" smooth the projection instead of the features."""
    graph = build_graph(torch.stack([torch.arange(6.0), torch.zeros(6)])[None])
    sm = SmoothOperator(0.8).double()
    x, y = torch.randn(2, 1, 1, 6).double()
    torch.testing.assert_close((sm(x, graph) * y).sum(), (x * sm(y, graph)).sum())
    torch.testing.assert_close(sm(2 * x + y, graph), 2 * sm(x, graph) + sm(y, graph))


def test_trainable_alpha_starts_at_half_learns_and_stays_between_0_and_1() -> None:
    sm = SmoothOperator("trainable")
    assert float(sm.alpha.detach()) == 0.5
    graph = build_graph(torch.arange(4.0).view(1, 1, 4))
    (-sm(torch.tensor([[[0.0, 1.0, 0.0, 1.0]]]), graph).square().sum()).backward()
    assert sm.alpha_logit.grad is not None
    assert sm.alpha_logit.grad > 0  # an energy that wants contrast pushes alpha down
    with torch.no_grad():
        sm.alpha_logit.fill_(15.0)
        assert 0 < float(sm.alpha) < 1


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5])
def test_alpha_outside_0_and_1_is_an_error(alpha: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        SmoothOperator(alpha)


def test_an_unknown_word_for_alpha_is_an_error() -> None:
    with pytest.raises(ValueError, match="'trainable'"):
        SmoothOperator("learned")


def test_smoothing_without_neighbours_is_an_error_not_a_silent_nothing() -> None:
    with pytest.raises(ValueError, match="spatial_dims 1"):
        SmoothOperator()(torch.zeros(1, 2, 3), no_graph(torch.ones(1, 1, 3)))
