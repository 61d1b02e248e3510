# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The smooth operator against solvers of scipy and against autograd of the plain formula."""

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from scripts.networks.graph import Graph, build_graph, no_graph, normalised
from scripts.networks.smooth import SmoothOperator, chebyshev_terms, series
from tests.networks.compositions import bags, dense, thorough


def geometric(n: int = 400, reach: float = 0.07) -> Graph:
    """Random points of a square, neighbours if they are near: degrees from 0 to many, and weights that differ."""
    random = np.random.default_rng(0)
    around: list[list[tuple[int, float]]] = [[] for _ in range(n)]
    for i, j in cKDTree(random.random((n, 2))).query_pairs(reach):
        weight = random.uniform(0.2, 2)
        around[i].append((j, weight))
        around[j].append((i, weight))
    k = max(map(len, around))
    neighbours, weights = torch.arange(n).repeat(1, k, 1), torch.zeros(1, k, n)
    for i, row in enumerate(around):
        for place, (j, weight) in enumerate(row):
            neighbours[0, place, i], weights[0, place, i] = j, weight
    return Graph(neighbours, weights)


def holes() -> Graph:
    cells = torch.randperm(40 * 40, generator=torch.Generator().manual_seed(0))[:900]
    return build_graph(torch.stack([cells % 40, cells // 40]).float()[None])


def chain(n: int = 57) -> Graph:
    return build_graph(torch.randperm(n, generator=torch.Generator().manual_seed(0)).float().view(1, 1, n))


GRAPHS = {"geometric": geometric(), "lattice with holes": holes(), "chain": chain(), "long chain": chain(1500)}
each_graph = pytest.mark.parametrize("name", GRAPHS)
each_alpha = pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 0.99])
each_mode = pytest.mark.parametrize(
    "mode", [{"mode": "approx"}, {"mode": "approx", "accelerated": True}, {"mode": "exact"}], ids=str
)


def sparse(graph: Graph) -> scipy.sparse.csr_matrix:
    """Ã of a single bag in float64, by scipy; an isolated instance is its own neighbour."""
    k, n = graph.neighbours.shape[1:]
    places = (np.tile(np.arange(n), k), graph.neighbours[0].flatten().numpy())
    a = scipy.sparse.csr_matrix((graph.weights[0].flatten().double().numpy(), places), shape=(n, n))
    degree = np.asarray(a.sum(axis=1)).ravel()
    scale = scipy.sparse.diags_array(np.divide(1, np.sqrt(degree), out=np.zeros(n), where=degree > 0))
    return (scale @ a @ scale + scipy.sparse.diags_array((degree == 0).astype(float))).tocsr()


def solved(x: Tensor, graph: Graph, alpha: float) -> Tensor:
    """(1 - α)(I - αÃ)^-1 X in float64."""
    a = sparse(graph)
    system = (scipy.sparse.eye_array(a.shape[0]) - alpha * a).tocsc()
    return torch.from_numpy((1 - alpha) * splu(system).solve(x[0].double().numpy().T)).t()[None]


def stepped(x: Tensor, graph: Graph, alpha: float, steps: int) -> Tensor:
    """The paper's recursion in float64."""
    a, u = sparse(graph), x[0].double().numpy().T
    g = u
    for _ in range(steps):
        g = (1 - alpha) * u + alpha * (a @ g)
    return torch.from_numpy(g).t()[None]


def signal(graph: Graph, columns: int = 40) -> Tensor:
    """More columns than are smoothed at a time."""
    return torch.randn(1, columns, graph.neighbours.shape[2], generator=torch.Generator().manual_seed(1))


def missed(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


# --- values


@each_alpha
@each_graph
def test_exact_is_the_sparse_solve(name: str, alpha: float) -> None:
    graph = GRAPHS[name]
    x = signal(graph)
    wanted = solved(x, graph, alpha)
    assert missed(SmoothOperator(alpha, "exact")(x, graph), wanted) < 1e-5
    assert missed(SmoothOperator(alpha, "exact").double()(x.double(), graph), wanted) < 1e-6


@each_alpha
@each_graph
def test_approximate_is_the_recursion_of_the_paper(name: str, alpha: float) -> None:
    graph = GRAPHS[name]
    x = signal(graph)
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
    """Small at 0.5 and 0.7; at 0.9 the accelerated variant has a fifth of the paper's or less."""
    graph = GRAPHS[name]
    x = signal(graph)
    error = {alpha: missed(SmoothOperator(alpha)(x, graph), solved(x, graph, alpha)) for alpha in (0.5, 0.7, 0.9)}
    assert error[0.5] < 2e-3
    assert error[0.7] < 4e-2
    assert missed(SmoothOperator(0.9, accelerated=True)(x, graph), solved(x, graph, 0.9)) < error[0.9] / 5


@each_mode
def test_isolated_instances_come_out_unchanged(mode: dict[str, Any]) -> None:
    lattice = build_graph(torch.tensor([[[0.0, 1.0, 40.0], [0.0, 0.0, 40.0]]]))
    pair = build_graph(torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]]))
    for graph in (lattice, pair):
        x = torch.randn(1, 5, 3)
        got = SmoothOperator(0.99, **mode)(x, graph)
        torch.testing.assert_close(got[..., 2], x[..., 2], rtol=1e-5, atol=1e-6)
        assert (got[..., :2] - x[..., :2]).abs().max() > 1e-3


def test_a_table_of_two_neighbours_that_is_no_chain_is_solved_too() -> None:
    """A path whose middle instances name the one after first, a ring, and an isolated place that names another."""
    swapped = build_graph(torch.arange(6.0).view(1, 1, 6))
    for node in (1, 4):
        swapped.neighbours[0, :, node] = swapped.neighbours[0, :, node].flip(0)
    places = torch.arange(6)
    ring = Graph(torch.stack([(places - 1) % 6, (places + 1) % 6])[None], torch.ones(1, 2, 6))
    x = torch.randn(1, 4, 6)
    for graph in (swapped, ring):
        assert missed(SmoothOperator(0.9, "exact")(x, graph), solved(x, graph, 0.9)) < 1e-5
    pair = Graph(torch.tensor([[[1, 0, 0]]]), torch.tensor([[[1.0, 1.0, 0.0]]]))
    torch.testing.assert_close(SmoothOperator(0.9)(x[..., :3], pair)[..., 2], x[..., 2])


@each_mode
def test_half_precision_is_smoothed_in_float32(mode: dict[str, Any]) -> None:
    graph, sm = chain(9), SmoothOperator(0.7, **mode)
    x = torch.randn(1, 3, 9).bfloat16()
    torch.testing.assert_close(sm(x, graph), sm(x.float(), graph), rtol=0, atol=0)


# --- gradients


def small_graph(spatial_dims: int) -> Graph:
    coords = torch.tensor([[[0.0, 1, 2, 5, 6, 9]], [[3.0, 4, 1, 2, 0, 0]]])
    if spatial_dims == 2:
        coords = torch.cat([coords, torch.tensor([[[0.0, 1, 0, 0, 1, 4]], [[0.0, 0, 1, 2, 2, 9]]])], dim=1)
    return build_graph(coords, torch.tensor([[[1.0] * 6], [[1.0] * 5 + [0.0]]]))


@each_mode
@pytest.mark.parametrize("spatial_dims", [1, 2])
@pytest.mark.parametrize("logit", [-1.0, 2.0])
def test_gradients_are_finite_differences(mode: dict[str, Any], spatial_dims: int, logit: float) -> None:
    graph, sm = small_graph(spatial_dims), SmoothOperator("trainable", steps=4, **mode).double()

    def smoothed(x: Tensor, alpha_logit: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(sm, {"alpha_logit": alpha_logit}, (x, graph))
        return result

    x = torch.randn(2, 3, 6, dtype=torch.double, requires_grad=True)
    alpha_logit = torch.tensor(logit, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(smoothed, (x, alpha_logit), fast_mode=True)


@each_mode
@pytest.mark.parametrize("spatial_dims", [1, 2])
def test_gradients_are_autograd_of_the_plain_formula(mode: dict[str, Any], spatial_dims: int) -> None:
    """Of the signal, in more than one block of columns, and of alpha."""
    both = small_graph(spatial_dims)
    graph = Graph(both.neighbours[:1], both.weights[:1])
    sm = SmoothOperator("trainable", steps=4, **mode).double()
    x = torch.randn(1, 40, 6, dtype=torch.double, requires_grad=True)
    v = torch.randn(1, 40, 6, dtype=torch.double)
    a = dense(normalised(Graph(graph.neighbours, graph.weights.double())))
    alpha = torch.sigmoid(sm.alpha_logit)
    if mode["mode"] == "exact":
        plain = (1 - alpha) * torch.linalg.solve(torch.eye(6).double() - alpha * a, x[0].t()).t()
    elif mode.get("accelerated"):
        table = normalised(Graph(graph.neighbours, graph.weights.double()))
        factors = chebyshev_terms(alpha, 1 - alpha, 4)
        plain = series(x[0].t(), factors, table.neighbours[0].t(), table.weights[0].t(), chebyshev=True)[0].t()
        plain = torch.where(graph.weights[0].sum(dim=0) == 0, x[0], plain)
    else:
        plain = x[0]
        for _ in range(4):
            plain = (1 - alpha) * x[0] + alpha * plain @ a
    wanted = torch.autograd.grad((plain * v[0]).sum(), (x, sm.alpha_logit))
    got = torch.autograd.grad((sm(x, graph) * v).sum(), (x, sm.alpha_logit))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@each_mode
def test_nothing_is_kept_for_the_gradient_but_the_signal_and_the_graph(mode: dict[str, Any]) -> None:
    graph, kept = holes(), list[Tensor]()
    x = signal(graph).requires_grad_()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SmoothOperator("trainable", steps=50, **mode)(x, graph)
    assert len([tensor for tensor in kept if tensor.numel() >= x.numel()]) == 1


# --- alpha


@pytest.mark.parametrize("logit", [-800.0, -40.0, 15.0, 800.0])
@each_mode
def test_alpha_stays_between_0_and_1_whatever_was_learned(mode: dict[str, Any], logit: float) -> None:
    sm = SmoothOperator("trainable", **mode)
    sm.alpha_logit.data.fill_(logit)
    assert 0 < float(sm.alpha.detach()) < 1
    sm.settle()
    for graph in (chain(9), build_graph(torch.tensor([[[0.0, 1, 1], [0.0, 0, 1]]]))):
        assert sm(torch.randn(1, 2, graph.neighbours.shape[2]), graph).isfinite().all()


def test_trainable_alpha_starts_at_half_and_learns() -> None:
    sm, graph = SmoothOperator("trainable"), build_graph(torch.arange(4.0).view(1, 1, 4))
    assert float(sm.alpha.detach()) == 0.5
    (-sm(torch.tensor([[[0.0, 1.0, 0.0, 1.0]]]), graph).square().sum()).backward()
    assert sm.alpha_logit.grad is not None
    assert sm.alpha_logit.grad > 0  # an energy that wants contrast pushes alpha down


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


@pytest.mark.parametrize(
    ("shape", "graph", "message"),
    [
        ((4, 9), chain(9), r"a graph of 9 instances: \[B, D, N\]"),
        ((1, 9, 4), chain(9), r"a graph of 9 instances: \[B, D, N\]"),
        ((1, 2, 3), no_graph(torch.ones(1, 1, 3)), "spatial_dims 1"),  # not a silent nothing
    ],
)
def test_a_signal_that_does_not_fit_the_graph_is_refused(shape: tuple[int, ...], graph: Graph, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothOperator()(torch.zeros(shape), graph)
