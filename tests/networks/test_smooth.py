# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from scripts.networks.graph import Graph, build_graph, no_graph
from scripts.networks.smooth import SmoothOperator
from tests.networks.compositions import bags

ALPHAS = (0.1, 0.5, 0.9, 0.99)


def geometric(n: int = 600, reach: float = 0.07) -> Graph:
    """Random points of a square, neighbours if they are near: degrees from 0 to many, and weights that differ."""
    random = np.random.default_rng(0)
    points = random.random((n, 2))
    around: list[list[tuple[int, float]]] = [[] for _ in range(n)]
    for i, j in cKDTree(points).query_pairs(reach):
        weight = random.uniform(0.2, 2)
        around[i].append((j, weight))
        around[j].append((i, weight))
    k = max(len(neighbours) for neighbours in around)
    neighbours = torch.arange(n).repeat(1, k, 1)
    weights = torch.zeros(1, k, n)
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


def normalised_adjacency(graph: Graph) -> scipy.sparse.csr_matrix:
    """Ã of a single bag in float64, by scipy; an isolated instance is its own neighbour."""
    k, n = graph.neighbours.shape[1:]
    places = (np.tile(np.arange(n), k), graph.neighbours[0].flatten().numpy())
    a = scipy.sparse.csr_matrix((graph.weights[0].flatten().double().numpy(), places), shape=(n, n))
    degree = np.asarray(a.sum(axis=1)).ravel()
    scale = scipy.sparse.diags_array(np.divide(1, np.sqrt(degree), out=np.zeros(n), where=degree > 0))
    return (scale @ a @ scale + scipy.sparse.diags_array((degree == 0).astype(float))).tocsr()


def solved(x: Tensor, graph: Graph, alpha: float) -> Tensor:
    """(1 - α)(I - αÃ)^-1 X in float64."""
    a = normalised_adjacency(graph)
    system = (scipy.sparse.eye_array(a.shape[0]) - alpha * a).tocsc()
    return torch.from_numpy((1 - alpha) * splu(system).solve(x[0].double().numpy().T)).t()[None]


def stepped(x: Tensor, graph: Graph, alpha: float, steps: int) -> Tensor:
    """The paper's recursion in float64."""
    a, u = normalised_adjacency(graph), x[0].double().numpy().T
    g = u
    for _ in range(steps):
        g = (1 - alpha) * u + alpha * (a @ g)
    return torch.from_numpy(g).t()[None]


def signal(graph: Graph, columns: int = 40) -> Tensor:
    """More columns than are smoothed at a time."""
    return torch.randn(1, columns, graph.neighbours.shape[2], generator=torch.Generator().manual_seed(1))


def missed(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("alpha", ALPHAS)
@each_graph
def test_exact_is_the_sparse_solve(name: str, alpha: float) -> None:
    graph = GRAPHS[name]
    x = signal(graph)
    assert missed(SmoothOperator(alpha, "exact")(x, graph), solved(x, graph, alpha)) < 1e-5
    assert missed(SmoothOperator(alpha, "exact").double()(x.double(), graph), solved(x, graph, alpha)) < 1e-6


@pytest.mark.parametrize("alpha", ALPHAS)
@each_graph
def test_approximate_is_the_recursion_of_the_paper(name: str, alpha: float) -> None:
    graph = GRAPHS[name]
    x = signal(graph)
    assert missed(SmoothOperator(alpha)(x, graph), stepped(x, graph, alpha, 10)) < 1e-6
    assert missed(SmoothOperator(alpha, steps=3)(x, graph), stepped(x, graph, alpha, 3)) < 1e-6


@pytest.mark.parametrize(("alpha", "steps"), [(0.1, 10), (0.5, 25), (0.9, 250)])
@pytest.mark.parametrize("spatial_dims", [1, 2])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_more_steps_come_to_the_exact_operator(
    data: st.DataObject, spatial_dims: int, alpha: float, steps: int
) -> None:
    """And so alpha means the same in both modes."""
    x, coords = data.draw(bags(spatial_dims))
    graph = build_graph(coords[None])
    exact = SmoothOperator(alpha, "exact")(x[None].double(), graph)
    torch.testing.assert_close(SmoothOperator(alpha, steps=steps)(x[None].double(), graph), exact, rtol=1e-6, atol=1e-6)
    accelerated = SmoothOperator(alpha, steps=steps, accelerated=True)(x[None].double(), graph)
    torch.testing.assert_close(accelerated, exact, rtol=1e-6, atol=1e-6)


@each_graph
def test_the_accelerated_variant_misses_a_fifth_or_less_at_the_same_steps(name: str) -> None:
    graph = GRAPHS[name]
    x = signal(graph)
    wanted = solved(x, graph, 0.9)
    paper, accelerated = (SmoothOperator(0.9, accelerated=fast)(x, graph) for fast in (False, True))
    assert missed(accelerated, wanted) < missed(paper, wanted) / 5


@pytest.mark.parametrize(("alpha", "error"), [(0.5, 2e-3), (0.7, 4e-2)])
def test_ten_steps_of_the_paper_are_close(alpha: float, error: float) -> None:
    graph = GRAPHS["lattice with holes"]
    x = signal(graph)
    assert missed(SmoothOperator(alpha)(x, graph), solved(x, graph, alpha)) < error


MODES = [("approx", False), ("approx", True), ("exact", False)]
each_mode = pytest.mark.parametrize(("mode", "accelerated"), MODES)


@each_mode
@pytest.mark.parametrize("spatial_dims", [1, 2])
@pytest.mark.parametrize("logit", [-1.0, 0.0, 2.0])
def test_gradients_are_those_of_the_formula(mode: str, accelerated: bool, spatial_dims: int, logit: float) -> None:
    """For the bag and for alpha, against finite differences in float64."""
    coords = torch.tensor([[[0.0, 1, 2, 5, 6, 9]], [[3.0, 4, 1, 2, 0, 0]]])
    if spatial_dims == 2:
        coords = torch.cat([coords, torch.tensor([[[0.0, 1, 0, 0, 1, 4]], [[0.0, 0, 1, 2, 2, 9]]])], dim=1)
    mask = torch.tensor([[[1.0] * 6], [[1.0] * 5 + [0.0]]])
    graph = build_graph(coords, mask)
    sm = SmoothOperator("trainable", mode, 4, accelerated).double()

    def smoothed(x: Tensor, alpha_logit: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(sm, {"alpha_logit": alpha_logit}, (x, graph))
        return result

    x = torch.randn(2, 34, 6, dtype=torch.double, requires_grad=True)
    alpha_logit = torch.tensor(logit, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(smoothed, (x, alpha_logit))


@each_mode
def test_nothing_is_kept_for_the_gradient_but_the_signal_and_the_graph(mode: str, accelerated: bool) -> None:
    graph = holes()
    kept: list[Tensor] = []
    x = signal(graph).requires_grad_()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SmoothOperator("trainable", mode, 50, accelerated)(x, graph)
    large = [t for t in kept if t.numel() >= x.numel()]
    assert len(large) == 1


@each_mode
def test_isolated_instances_come_out_unchanged(mode: str, accelerated: bool) -> None:
    lattice = build_graph(torch.tensor([[[0.0, 1.0, 40.0], [0.0, 0.0, 40.0]]]))
    pair = build_graph(torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]]))
    for graph in (lattice, pair):
        x = torch.randn(1, 5, 3)
        got = SmoothOperator(0.99, mode, accelerated=accelerated)(x, graph)
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


@pytest.mark.parametrize("logit", [-800.0, -40.0, 40.0, 800.0])
@each_mode
def test_alpha_stays_between_0_and_1_whatever_was_learned(mode: str, accelerated: bool, logit: float) -> None:
    sm = SmoothOperator("trainable", mode, accelerated=accelerated)
    sm.alpha_logit.data.fill_(logit)
    assert 0 < float(sm.alpha.detach()) < 1
    sm.settle()
    for graph in (chain(9), build_graph(torch.tensor([[[0.0, 1, 1], [0.0, 0, 1]]]))):
        assert sm(torch.randn(1, 2, graph.neighbours.shape[2]), graph).isfinite().all()


def test_bags_of_a_batch_are_solved_for_themselves() -> None:
    coords = torch.rand(3, 1, 9)
    mask = torch.ones(3, 1, 9)
    mask[1, 0, 4:] = 0
    x = torch.randn(3, 5, 9)
    sm = SmoothOperator(0.95, "exact")
    together = sm(x, build_graph(coords, mask))
    torch.testing.assert_close(together[0], sm(x[:1], build_graph(coords[:1]))[0])
    torch.testing.assert_close(together[1, :, :4], sm(x[1:2, :, :4], build_graph(coords[1:2, :, :4]))[0])


def test_more_alpha_is_smoother_and_none_is_the_identity() -> None:
    graph = build_graph(torch.arange(30.0).view(1, 1, 30))
    x = torch.randn(1, 1, 30, generator=torch.Generator().manual_seed(0))
    roughness = [float(SmoothOperator(a, "exact")(x, graph).diff().square().sum()) for a in (1e-6, 0.3, 0.6, 0.9)]
    assert roughness == sorted(roughness, reverse=True)
    torch.testing.assert_close(SmoothOperator(1e-6)(x, graph), x, atol=1e-5, rtol=0)


@each_mode
def test_linear_and_symmetric(mode: str, accelerated: bool) -> None:
    """⟨Sm(x), y⟩ = ⟨x, Sm(y)⟩: what lets "early" smooth the projection instead of the features."""
    graph = build_graph(torch.stack([torch.arange(6.0), torch.zeros(6)])[None])
    sm = SmoothOperator(0.8, mode, accelerated=accelerated).double()
    x, y = torch.randn(2, 1, 1, 6).double()
    torch.testing.assert_close((sm(x, graph) * y).sum(), (x * sm(y, graph)).sum())
    torch.testing.assert_close(sm(2 * x + y, graph), 2 * sm(x, graph) + sm(y, graph))


@each_mode
def test_half_precision_is_smoothed_in_float32(mode: str, accelerated: bool) -> None:
    graph = chain(9)
    x = torch.randn(1, 3, 9).bfloat16()
    sm = SmoothOperator(0.7, mode, accelerated=accelerated)
    torch.testing.assert_close(sm(x, graph), sm(x.float(), graph), rtol=0, atol=0)


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


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, 0.99999])
def test_alpha_outside_0_and_1_is_an_error(alpha: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        SmoothOperator(alpha)


def test_an_unknown_word_for_alpha_is_an_error() -> None:
    with pytest.raises(ValueError, match="'trainable'"):
        SmoothOperator("learned")


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="'approx' or 'exact' is wanted"):
        SmoothOperator(mode="fast")


def test_an_accelerated_exact_operator_is_an_error() -> None:
    with pytest.raises(ValueError, match="accelerated belongs to the mode 'approx'"):
        SmoothOperator(mode="exact", accelerated=True)


@pytest.mark.parametrize("shape", [(4, 9), (1, 9, 4)])
def test_a_signal_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x does not fit a graph of 9 instances: \[B, D, N\] is wanted"):
        SmoothOperator()(torch.zeros(shape), chain(9))


def test_no_step_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="steps is 0: at least 1 is wanted"):
        SmoothOperator(steps=0)


def test_smoothing_without_neighbours_is_an_error_not_a_silent_nothing() -> None:
    with pytest.raises(ValueError, match="spatial_dims 1"):
        SmoothOperator()(torch.zeros(1, 2, 3), no_graph(torch.ones(1, 1, 3)))
