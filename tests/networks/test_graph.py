# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Graphs against distances computed by hand: who is a neighbour, with which weight, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scripts.networks import graph as module
from scripts.networks.graph import aggregate, build_graph, laplacian, normalised, weighted_by_features
from tests.networks.compositions import dense, thorough

pairs = st.tuples(st.integers(-6, 6), st.integers(-6, 6))
cells = st.sets(pairs, max_size=38).map(lambda some: some | {(0, 0), (1, 0)})


def lattice(places: set[tuple[int, int]]) -> Tensor:
    return torch.tensor(sorted(places), dtype=torch.float).t()[None]


def distance(x: Tensor) -> Tensor:
    """[N, N] of x [D, N]."""
    return torch.cdist(x.t(), x.t(), compute_mode="donot_use_mm_for_euclid_dist")


# --- lattices


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.9, 3.0])
@thorough
@given(places=cells)
def test_radius_is_the_distance_of_neighbours(radius: float, places: set[tuple[int, int]]) -> None:
    coords = lattice(places)
    apart = distance(coords[0])
    assert torch.equal(dense(build_graph(coords, radius=radius)), ((apart > 0) & (apart <= radius)).float())


def test_a_patch_has_eight_neighbours_unless_told_otherwise() -> None:
    full = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")).flatten(1)[None]
    assert dense(build_graph(full)).sum(dim=0).tolist() == [3, 5, 3, 5, 8, 5, 3, 5, 3]


@thorough
@given(places=cells)
def test_an_exported_lattice_is_the_same(places: set[tuple[int, int]]) -> None:
    """Its search must do without searchsorted, which ONNX does not know."""
    coords, mask = lattice(places), torch.ones(1, 1, len(places))
    mask[0, 0, 2::5] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "exporting", lambda: True)
        exported = build_graph(coords, mask)
    assert torch.equal(dense(exported), dense(build_graph(coords, mask, edgeless=True)))


@thorough
@given(places=cells, far=st.integers(1000, 10**6))
def test_a_bag_scattered_over_a_huge_lattice_has_the_same_neighbours(places: set[tuple[int, int]], far: int) -> None:
    """Too many cells for a table of them: they are searched."""
    near = lattice(places).double()
    there = torch.cat([near, near + torch.tensor([[far], [2 * far]])], dim=2)
    once = dense(build_graph(near))
    assert torch.equal(dense(build_graph(there)), torch.block_diag(once, once))


@pytest.mark.parametrize(
    "row", [[1000.2, 1001.2, 1002.2], [-0.4, 0.6, 1.6], [0.5, 1.5, 2.5]], ids=["far", "fractions", "halves"]
)
def test_coords_need_neither_start_at_0_nor_be_whole(row: list[float]) -> None:
    coords = torch.tensor([[row, [-500.5] * 3]])
    assert dense(build_graph(coords)).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


@thorough
@given(places=cells)
def test_feature_weights_are_the_formula(places: set[tuple[int, int]]) -> None:
    graph, x = build_graph(lattice(places)), torch.randn(1, 6, len(places))
    wanted = dense(graph) * torch.exp(-distance(x[0]) / 6)
    torch.testing.assert_close(dense(weighted_by_features(graph, x)), wanted)


# --- chains


def test_a_chain_follows_the_position_not_the_index() -> None:
    matrix = dense(build_graph(torch.tensor([[[20.0, -5.0, 7.5, 100.0]]])))  # order along the normal: 1, 2, 0, 3
    assert matrix.nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [2, 0], [2, 1], [3, 0]]


def test_spacing_weighs_near_slices_more() -> None:
    """Mean distance over one's own: 2 / (1, 4, 1) mm, whatever the unit and the direction; padding changes nothing."""
    millimetres = torch.tensor([[[0.0, 1.0, 5.0, 6.0]]])
    wanted = torch.tensor([[0, 2, 0, 0], [2, 0, 0.5, 0], [0, 0.5, 0, 2], [0, 0, 2, 0]])
    for coords in (millimetres, -millimetres, millimetres / 1000):
        torch.testing.assert_close(dense(build_graph(coords, spacing=True)), wanted)
    longer = torch.cat([millimetres, torch.tensor([[[77.0]]])], dim=2)
    in_padding = dense(build_graph(longer, torch.tensor([[[1.0, 1, 1, 1, 0]]]), spacing=True))
    torch.testing.assert_close(in_padding, torch.block_diag(wanted, torch.zeros(1, 1)))
    even = torch.arange(5.0).view(1, 1, 5)
    torch.testing.assert_close(dense(build_graph(3 * even, spacing=True)), dense(build_graph(even)))


# --- both


@pytest.mark.parametrize("dims", [1, 2])
def test_padding_has_no_neighbours_whatever_it_holds(dims: int) -> None:
    mask = torch.tensor([[[1.0, 1, 1, 0, 0]]])
    coords = torch.tensor([[[0.0, 1, 2, 1e15, float("nan")], [0.0, 0, 0, -1e15, float("inf")]]])[:, :dims]
    assert dense(build_graph(coords, mask)).nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


def test_whole_numbers_are_coords_too() -> None:
    mask = torch.tensor([[[1, 1, 1, 0]]])
    for coords in (torch.tensor([[[3, 1, 2, 0]]]), torch.tensor([[[3, 1, 2, 0], [0, 0, 0, 0]]])):
        assert torch.equal(dense(build_graph(coords, mask)), dense(build_graph(coords.float(), mask)))


def test_bags_of_a_batch_do_not_see_each_other() -> None:
    coords = torch.tensor([[[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]], [[5.0, 5.0, 5.0], [1.0, 2.0, 3.0]]])
    x = torch.zeros(2, 1, 3)
    x[0, 0] = torch.tensor([1.0, 10.0, 100.0])
    assert aggregate(x, build_graph(coords))[:, 0].tolist() == [[10, 101, 10], [0, 0, 0]]


@thorough
@given(places=cells)
def test_laplacian_is_degree_minus_adjacency(places: set[tuple[int, int]]) -> None:
    graph, x = build_graph(lattice(places)), torch.randn(1, 3, len(places))
    a = dense(graph)
    torch.testing.assert_close(laplacian(x, graph)[0], x[0] @ (torch.diag(a.sum(dim=0)) - a))


@thorough
@given(places=cells)
def test_normalised_is_symmetric_with_eigenvalues_within_one(places: set[tuple[int, int]]) -> None:
    graph = build_graph(lattice(places | {(50, 50)}))  # the last one is isolated
    a, got = dense(graph), dense(normalised(graph))
    degree = a.sum(dim=0)
    isolated = torch.diag((degree == 0).float())
    wanted = a / torch.sqrt(torch.outer(degree, degree)).clamp(min=1) + isolated
    torch.testing.assert_close(got, wanted)
    assert np.abs(np.linalg.eigvalsh(got.numpy())).max() <= 1 + 1e-5


# --- what is refused


@pytest.mark.parametrize("far", [0, 200_000])
def test_a_wrong_unit_is_refused_with_the_pitch(far: int) -> None:
    coords = 224 * torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")).flatten(1)[None]
    with pytest.raises(ValueError, match=r"25 instances .* distance is 224\.0; divide the coords by it"):
        build_graph(coords + far)


def test_a_bag_without_an_edge_is_accepted_where_the_unit_is_certain() -> None:
    far = torch.tensor([[[0.0, 5.0], [0.0, 9.0]]])
    assert build_graph(far, edgeless=True).weights.sum() == 0
    with pytest.raises(ValueError, match="not one pair"):
        build_graph(far)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("coords", "options", "message"),
    [
        (torch.zeros(2, 5), {}, "coords have 2 dimensions"),
        (torch.zeros(1, 3, 4), {}, "coords hold 3 numbers per instance"),
        (torch.zeros(1, 2, 5), {"mask": torch.ones(1, 5)}, "the mask does not fit the coords"),
        (torch.zeros(1, 2, 5), {"mask": torch.ones(1, 1, 4)}, "the mask does not fit the coords"),
        (torch.tensor([[[0.0, NAN, 2.0]]]), {}, "NaN or infinite"),
        (torch.tensor([[[0.0, 1.0, 2.0], [0.0, 0.0, INF]]]), {}, "NaN or infinite"),
        (torch.tensor([[[0.0, 0.3, 1.0], [0.0, 0.1, 0.0]]]), {}, "two instances of a bag share one"),
        (torch.zeros(1, 2, 3), {"radius": 0.5}, r"radius is 0\.5"),
        (torch.tensor([[[0.0, 1.0, 1.0]]]), {"spacing": True}, "two neighbouring slices have the same position"),
    ],
)
def test_coords_that_make_no_graph_are_refused(coords: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_graph(coords, **options)
