# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The smooth operator against dense solutions in float64, and its gradient against finite differences."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scripts.networks.graph import Graph, build_graph, no_graph
from scripts.networks.smooth import SmoothOperator
from tests.networks.compositions import as_on_an_accelerator, bags, dense, thorough


@pytest.fixture(scope="module", autouse=True, params=["host", "accelerator"])
def _path(request: pytest.FixtureRequest) -> Iterator[None]:
    with as_on_an_accelerator() if request.param == "accelerator" else nullcontext():
        yield


def random_graph(n: int = 60) -> Graph:
    """Any two may be neighbours: degrees from 0 to many, and weights that differ."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(n, n, generator=generator) * (torch.rand(n, n, generator=generator) < 0.03)
    a = (a + a.t()).fill_diagonal_(0)
    assert {0, 1, 5} <= set(a.gt(0).sum(dim=0).tolist())
    return Graph(torch.arange(n).view(1, n, 1).expand(1, n, n).contiguous(), a[None])


def holes() -> Graph:
    cells = torch.randperm(20 * 20, generator=torch.Generator().manual_seed(0))[:220]
    return build_graph(torch.stack([cells % 20, cells // 20]).float()[None])


def chain(n: int = 57) -> Graph:
    return build_graph(torch.randperm(n, generator=torch.Generator().manual_seed(0)).float().view(1, 1, n))


GRAPHS = {"random": random_graph(), "lattice with holes": holes(), "chain": chain(), "long chain": chain(500)}
each_graph = pytest.mark.parametrize("name", GRAPHS)
each_alpha = pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 0.99])
each_mode = pytest.mark.parametrize(
    "mode", [{"mode": "approx"}, {"mode": "approx", "accelerated": True}, {"mode": "exact"}], ids=str
)


def normalised_by_hand(graph: Graph) -> Tensor:
    """Ã [N, N] of a single bag in float64; an isolated instance is its own neighbour."""
    a = dense(Graph(graph.neighbours, graph.weights.double()))
    degree = a.sum(dim=1)
    return a / torch.outer(degree, degree).clamp(min=1e-9).sqrt() + torch.diag((degree == 0).double())


def solved(x: Tensor, graph: Graph, alpha: float) -> Tensor:
    """(1 - α)(I - αÃ)^-1 X in float64."""
    a = normalised_by_hand(graph)
    return (1 - alpha) * torch.linalg.solve(torch.eye(len(a)).double() - alpha * a, x[0].double().t()).t()[None]


def stepped(x: Tensor, graph: Graph, alpha: float, steps: int) -> Tensor:
    """The paper's recursion in float64."""
    a, u = normalised_by_hand(graph), x.double()
    g = u
    for _ in range(steps):
        g = (1 - alpha) * u + alpha * g @ a
    return g


def signal(graph: Graph, columns: int = 40) -> Tensor:
    """More columns than are smoothed at a time."""
    return torch.randn(1, columns, graph.neighbours.shape[2], generator=torch.Generator().manual_seed(1))


def missed(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


@each_alpha
@each_graph
def test_exact_is_the_solution_and_approximate_the_recursion_of_the_paper(name: str, alpha: float) -> None:
    graph = GRAPHS[name]
    x = signal(graph)
    wanted = solved(x, graph, alpha)
    assert missed(SmoothOperator(alpha, "exact")(x, graph), wanted) < 1e-5
    assert missed(SmoothOperator(alpha, "exact").double()(x.double(), graph), wanted) < 1e-6
    for steps in (3, 10):
        assert missed(SmoothOperator(alpha, steps=steps)(x, graph), stepped(x, graph, alpha, steps)) < 1e-6


@pytest.mark.parametrize(("alpha", "steps"), [(0.1, 10), (0.5, 25), (0.9, 250)])
@pytest.mark.parametrize("spatial_dims", [1, 2])
@thorough
@given(data=st.data())
def test_more_steps_come_to_the_exact_operator(
    data: st.DataObject, spatial_dims: int, alpha: float, steps: int
) -> None:
    """And so alpha means the same in both modes."""
    x, coords = data.draw(bags(spatial_dims))
    graph = build_graph(coords[None])
    exact = SmoothOperator(alpha, "exact")(x[None].double(), graph)
    for accelerated in (False, True):
        got = SmoothOperator(alpha, steps=steps, accelerated=accelerated)(x[None].double(), graph)
        torch.testing.assert_close(got, exact, rtol=1e-6, atol=1e-6)


@each_graph
def test_errors_of_ten_steps_are_those_known(name: str) -> None:
    """Small at 0.5; at 0.9 the accelerated variant has a fifth of the paper's or less."""
    graph = GRAPHS[name]
    x = signal(graph)
    assert missed(SmoothOperator(0.5)(x, graph), solved(x, graph, 0.5)) < 2e-3
    wanted = solved(x, graph, 0.9)
    error = missed(SmoothOperator(0.9)(x, graph), wanted)
    assert missed(SmoothOperator(0.9, accelerated=True)(x, graph), wanted) < error / 5


@each_mode
def test_isolated_instances_come_out_unchanged(mode: dict[str, Any]) -> None:
    lattice = build_graph(torch.tensor([[[0.0, 1.0, 40.0], [0.0, 0.0, 40.0]]]))
    padded = build_graph(torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]]))
    named = Graph(torch.tensor([[[1, 0, 0]]]), torch.tensor([[[1.0, 1.0, 0.0]]]))  # names another with weight 0
    for graph in (lattice, padded, named):
        x = torch.randn(1, 5, 3)
        got = SmoothOperator(0.99, **mode)(x, graph)
        torch.testing.assert_close(got[..., 2], x[..., 2], rtol=1e-5, atol=1e-6)
        assert (got[..., :2] - x[..., :2]).abs().max() > 1e-3


def test_a_table_of_two_neighbours_that_is_no_chain_is_solved_too() -> None:
    """A path whose middle instances name the one after first, and a ring."""
    swapped = build_graph(torch.arange(6.0).view(1, 1, 6))
    for node in (1, 4):
        swapped.neighbours[0, :, node] = swapped.neighbours[0, :, node].flip(0)
    places = torch.arange(6)
    swapped = swapped._replace(chain=False)
    ring = Graph(torch.stack([(places - 1) % 6, (places + 1) % 6])[None], torch.ones(1, 2, 6))
    x = torch.randn(1, 4, 6)
    for graph in (swapped, ring):
        assert missed(SmoothOperator(0.9, "exact")(x, graph), solved(x, graph, 0.9)) < 1e-5


@each_mode
def test_half_precision_is_smoothed_in_float32(mode: dict[str, Any]) -> None:
    graph, sm = chain(9), SmoothOperator(0.7, **mode)
    x = torch.randn(1, 3, 9).bfloat16()
    torch.testing.assert_close(sm(x, graph), sm(x.float(), graph).bfloat16(), rtol=0, atol=0)


@each_mode
def test_autocast_changes_nothing(mode: dict[str, Any]) -> None:
    """Neither answers nor gradients: every step is in float32, which autocast makes of no sum."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        sm, x = SmoothOperator("trainable", **mode), torch.randn(1, 40, 220, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            smoothed = sm(x, GRAPHS["lattice with holes"])
            smoothed.square().sum().backward()
        found.append([smoothed, x.grad, sm.alpha_logit.grad])
    for plain, cast in zip(*found, strict=True):
        torch.testing.assert_close(cast, plain, rtol=1e-6, atol=1e-6)


@each_mode
@pytest.mark.parametrize("spatial_dims", [1, 2])
@pytest.mark.parametrize("logit", [-1.0, 2.0])
def test_gradients_are_finite_differences(mode: dict[str, Any], spatial_dims: int, logit: float) -> None:
    """Of the signal, in more than one block of columns, and of alpha."""
    coords = torch.tensor([[[0.0, 1, 2, 5, 6, 9]], [[3.0, 4, 1, 2, 0, 0]]])
    if spatial_dims == 2:
        coords = torch.cat([coords, torch.tensor([[[0.0, 1, 0, 0, 1, 4]], [[0.0, 0, 1, 2, 2, 9]]])], dim=1)
    graph = build_graph(coords, torch.tensor([[[1.0] * 6], [[1.0] * 5 + [0.0]]]))
    sm = SmoothOperator("trainable", steps=4, **mode).double()

    def smoothed(x: Tensor, alpha_logit: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(sm, {"alpha_logit": alpha_logit}, (x, graph))
        return result

    x = torch.randn(2, 40, 6, dtype=torch.double, requires_grad=True)
    alpha_logit = torch.tensor(logit, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(smoothed, (x, alpha_logit), fast_mode=True)


@each_mode
def test_nothing_is_kept_for_the_gradient_but_the_signal_and_the_graph(mode: dict[str, Any]) -> None:
    graph, kept = holes(), list[int]()
    x = signal(graph).requires_grad_()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SmoothOperator("trainable", steps=50, **mode)(x, graph)
    assert len([numel for numel in kept if numel >= x.numel()]) == 1


@pytest.mark.parametrize("logit", [-800.0, -40.0, 15.0, 800.0])
@each_mode
def test_alpha_stays_between_0_and_1_whatever_was_learned(mode: dict[str, Any], logit: float) -> None:
    sm = SmoothOperator("trainable", **mode)
    assert float(sm.alpha.detach()) == 0.5
    sm.alpha_logit.data.fill_(logit)
    assert 0 < float(sm.alpha.detach()) < 1
    sm.settle()
    for graph in (chain(9), build_graph(torch.tensor([[[0.0, 1, 1], [0.0, 0, 1]]]))):
        assert sm(torch.randn(1, 2, graph.neighbours.shape[2]), graph).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"alpha": alpha}, "between 0 and 1, at most 0.99995") for alpha in (0, 1, -0.1, 0.99999)],
        ({"alpha": "learned"}, "'trainable'"),
        ({"mode": "fast"}, "'approx' or 'exact'"),
        ({"mode": "exact", "accelerated": True}, "accelerated belongs to the mode 'approx'"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothOperator(**options)


def test_a_signal_that_does_not_fit_the_graph_is_refused() -> None:
    for shape in ((4, 9), (1, 9, 4)):
        with pytest.raises(ValueError, match=r"a graph of 9 instances: \[B, D, N\]"):
            SmoothOperator()(torch.zeros(shape), chain(9))
    with pytest.raises(ValueError, match="spatial_dims 1"):  # not a silent nothing
        SmoothOperator()(torch.zeros(1, 2, 3), no_graph(torch.ones(1, 1, 3)))


@pytest.mark.parametrize("coords", [torch.arange(30.0)[None], torch.tensor([[0.0, 1, 2, 0, 9], [0, 0, 0, 1, 9]])])
def test_what_is_equal_everywhere_stays_so_where_it_is_smoothed_evenly(coords: Tensor) -> None:
    """Sm itself pulls the ends of a scan and the borders of tissue towards 0."""
    graph, equal = build_graph(coords[None]), torch.full((1, 1, coords.shape[1]), -3.2)
    smooth = SmoothOperator(0.7, mode="exact")
    torch.testing.assert_close(smooth.evenly(equal, graph), equal, atol=1e-4, rtol=0)
    assert (smooth(equal, graph) - equal).abs().max() > 0.1
