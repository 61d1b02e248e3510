# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Graphs against distances computed by hand: who is a neighbour, with which weight, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scripts.networks import graph as module
from scripts.networks.graph import build_graph, laplacian, normalised, weighted_by_features
from tests.networks.compositions import dense, thorough

pairs = st.tuples(st.integers(-6, 6), st.integers(-6, 6))
cells = st.sets(pairs, max_size=38).map(lambda some: some | {(0, 0), (1, 0)})


def lattice(places: set[tuple[int, int]]) -> Tensor:
    return torch.tensor(sorted(places), dtype=torch.float).t()[None]


def distance(x: Tensor) -> Tensor:
    """[N, N] of x [D, N]."""
    return torch.cdist(x.t(), x.t(), compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.9, 3.0])
@thorough
@given(places=cells)
def test_radius_is_the_distance_of_neighbours(radius: float, places: set[tuple[int, int]]) -> None:
    coords = lattice(places)
    apart = distance(coords[0])
    graph = build_graph(coords) if radius == 1.5 else build_graph(coords, radius=radius)  # by default 8 neighbours
    assert torch.equal(dense(graph), ((apart > 0) & (apart <= radius)).float())


@thorough
@given(places=cells, far=st.integers(1000, 10**6))
def test_neighbours_are_the_same_searched_as_by_a_table(places: set[tuple[int, int]], far: int) -> None:
    """Over a huge lattice, which has too many cells for a table, and exported, without searchsorted."""
    near, mask = lattice(places).double(), torch.ones(1, 1, len(places))
    mask[0, 0, 2::5] = 0
    there = torch.cat([near, near + torch.tensor([[far], [2 * far]])], dim=2)
    once = dense(build_graph(near, mask, edgeless=True))
    searched = build_graph(there, torch.cat([mask, mask], dim=2), edgeless=True)
    assert torch.equal(dense(searched), torch.block_diag(once, once))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "exporting", lambda: True)
        assert torch.equal(dense(build_graph(near, mask)), once)


@pytest.mark.parametrize("some", [1, 3])
@thorough
@given(places=cells)
def test_neighbours_found_a_few_at_a_time_are_those_found_together(some: int, places: set[tuple[int, int]]) -> None:
    """As of a bag of a million; its last instance is isolated."""
    coords, mask = lattice(places | {(50, 50)}), torch.ones(1, 1, len(places | {(50, 50)}))
    mask[0, 0, 2::5] = 0
    together = build_graph(coords, mask, edgeless=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_so_many", lambda of_each, k: some)
        apart = build_graph(coords, mask, edgeless=True)
        of_apart = normalised(apart, torch.float)
    for one, other in ((apart, together), (of_apart, normalised(together, torch.float))):
        assert all(torch.equal(*each) for each in zip(one[:2], other[:2], strict=True))


@pytest.mark.parametrize("row", [[1000.2, 1001.2, 1002.2], [-0.4, 0.6, 1.6], [0.5, 1.5, 2.5]])
def test_coords_need_neither_start_at_0_nor_be_whole(row: list[float]) -> None:
    coords = torch.tensor([[row, [-500.5] * 3]])
    assert dense(build_graph(coords)).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


@thorough
@given(places=cells)
def test_feature_weights_are_the_formula(places: set[tuple[int, int]]) -> None:
    graph, x = build_graph(lattice(places)), torch.randn(1, 6, len(places))
    wanted = dense(graph) * torch.exp(-distance(x[0]) / 6)
    torch.testing.assert_close(dense(weighted_by_features(graph, x)), wanted)


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


@pytest.mark.parametrize("dims", [1, 2])
def test_padding_has_no_neighbours_whatever_it_holds(dims: int) -> None:
    """And coords and mask may be whole numbers."""
    mask = torch.tensor([[[1, 1, 1, 0, 0]]])
    coords = torch.tensor([[[0.0, 1, 2, 1e15, float("nan")], [0.0, 0, 0, -1e15, float("inf")]]])[:, :dims]
    wanted = [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert dense(build_graph(coords, mask.float())).nonzero().tolist() == wanted
    assert dense(build_graph(coords.nan_to_num(7, 7).long(), mask)).nonzero().tolist() == wanted


@thorough
@given(places=cells)
def test_laplacian_and_normalised_adjacency_are_their_formulas(places: set[tuple[int, int]]) -> None:
    """D - A, and D^-1/2 A D^-1/2, whose eigenvalues lie within 1 and in which the isolated stay as they are."""
    graph = build_graph(lattice(places | {(50, 50)}))  # the last one is isolated
    a, got = dense(graph), dense(normalised(graph, torch.float))
    degree, x = a.sum(dim=0), torch.randn(1, 3, len(a))
    torch.testing.assert_close(laplacian(x, graph)[0], x[0] @ (torch.diag(degree) - a))
    wanted = a / torch.sqrt(torch.outer(degree, degree)).clamp(min=1) + torch.diag((degree == 0).float())
    torch.testing.assert_close(got, wanted)
    assert torch.linalg.eigvalsh(got).abs().max() <= 1 + 1e-5


def test_a_wrong_unit_is_refused_with_the_pitch_unless_the_unit_is_certain() -> None:
    index = torch.arange(25)
    coords = 224 * torch.stack([index % 5, index // 5])[None] + 200_000.0
    with pytest.raises(ValueError, match=r"25 instances .* distance is 224\.0; divide the coords by it"):
        build_graph(coords)
    assert build_graph(coords, edgeless=True).weights.sum() == 0


@pytest.mark.parametrize(
    ("coords", "options", "message"),
    [
        (torch.zeros(2, 5), {}, "coords have 2 dimensions"),
        (torch.zeros(1, 3, 4), {}, "coords hold 3 numbers per instance"),
        (torch.zeros(1, 2, 5), {"mask": torch.ones(1, 1, 4)}, "the mask does not fit the coords"),
        (torch.tensor([[[0.0, float("nan"), 2.0]]]), {}, "NaN or infinite"),
        (torch.tensor([[[0.0, 0.3, 1.0], [0.0, 0.1, 0.0]]]), {}, "two instances of a bag share one"),
        (torch.zeros(1, 2, 3), {"radius": 0.5}, r"radius is 0\.5"),
        (torch.tensor([[[0.0, 1.0, 1.0]]]), {"spacing": True}, "two neighbouring slices have the same position"),
    ],
)
def test_coords_that_make_no_graph_are_refused(coords: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_graph(coords, **options)
