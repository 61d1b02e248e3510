# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.networks import graph as module
from scripts.networks.graph import (
    Graph,
    aggregate,
    build_graph,
    laplacian,
    no_graph,
    normalised,
    weighted_by_features,
)

cells = st.sets(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=1, max_size=40)


def dense(graph: Graph) -> torch.Tensor:
    """The adjacency matrix [N, N] of a single bag."""
    k, n = graph.neighbours.shape[1:]
    matrix = torch.zeros(n, n)
    for row in range(k):
        matrix[torch.arange(n), graph.neighbours[0, row]] += graph.weights[0, row]
    return matrix


@given(cells)
def test_lattice_has_the_eight_neighbours_and_no_other(places: set[tuple[int, int]]) -> None:
    places |= {(0, 0), (1, 0)}
    coords = torch.tensor(sorted(places), dtype=torch.float).t()[None]
    distance = (coords[0][:, :, None] - coords[0][:, None, :]).abs().amax(dim=0)  # Chebyshev, by hand
    assert torch.equal(dense(build_graph(coords)), (distance == 1).float())


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 2.9, 3.0])
@given(cells)
def test_radius_is_the_distance_of_neighbours(radius: float, places: set[tuple[int, int]]) -> None:
    places |= {(0, 0), (1, 0)}
    coords = torch.tensor(sorted(places), dtype=torch.float).t()[None]
    distance = torch.cdist(coords[0].t(), coords[0].t(), compute_mode="donot_use_mm_for_euclid_dist")
    wanted = ((distance > 0) & (distance <= radius)).float()
    assert torch.equal(dense(build_graph(coords, radius=radius)), wanted)


@given(cells)
def test_an_exported_lattice_is_the_same(places: set[tuple[int, int]]) -> None:
    """Its search must do without searchsorted, which ONNX does not know."""
    places |= {(0, 0), (1, 0)}
    coords = torch.tensor(sorted(places), dtype=torch.float).t()[None]
    mask = torch.ones(1, 1, len(places))
    mask[0, 0, ::5] = 0
    mask[0, 0, -2:] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "exporting", lambda: True)
        exported = build_graph(coords, mask)
    try:
        eager = build_graph(coords, mask)
    except ValueError:  # the two that touched are padding now
        return
    assert torch.equal(dense(exported), dense(eager))


@given(cells, st.integers(1000, 10**6))
def test_a_bag_scattered_over_a_huge_lattice_has_the_same_neighbours(places: set[tuple[int, int]], far: int) -> None:
    """Too many cells for a table of them: they are searched."""
    places |= {(0, 0), (1, 0)}
    near = torch.tensor(sorted(places)).t()
    there = torch.cat([near, near + torch.tensor([[far], [2 * far]])], dim=1).double()[None]
    once = dense(build_graph(near.double()[None]))
    assert torch.equal(dense(build_graph(there)), torch.block_diag(once, once))


def test_what_stands_in_padding_does_not_matter() -> None:
    mask = torch.tensor([[[1.0, 1, 1, 0, 0]]])
    coords = torch.tensor([[[0.0, 1, 2, 1e15, float("nan")], [0.0, 0, 0, -1e15, float("inf")]]])
    assert dense(build_graph(coords, mask)).nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


def test_a_radius_below_the_pitch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"radius is 0\.5: below 1 pitch nobody has a neighbour"):
        build_graph(torch.zeros(1, 2, 3), radius=0.5)


def test_spacing_weighs_near_slices_more() -> None:
    """Mean distance over one's own: 2 / (1, 4, 1) mm, whatever the unit and the direction."""
    millimetres = torch.tensor([[[0.0, 1.0, 5.0, 6.0]]])
    wanted = [[0, 2, 0, 0], [2, 0, 0.5, 0], [0, 0.5, 0, 2], [0, 0, 2, 0]]
    for coords in (millimetres, -millimetres, millimetres / 1000):
        torch.testing.assert_close(dense(build_graph(coords, spacing=True)), torch.tensor(wanted))
    even = torch.arange(5.0).view(1, 1, 5)
    torch.testing.assert_close(dense(build_graph(3 * even, spacing=True)), dense(build_graph(even)))


def test_spacing_does_not_see_padding() -> None:
    coords = torch.tensor([[[5.0, 0.0, 1.0, 77.0]]])
    graph = build_graph(coords, torch.tensor([[[1.0, 1, 1, 0]]]), spacing=True)
    torch.testing.assert_close(dense(graph)[:3, :3], dense(build_graph(coords[..., :3], spacing=True)))
    assert dense(graph)[3].sum() == 0


def test_two_slices_at_one_place_have_no_spacing() -> None:
    with pytest.raises(ValueError, match="two neighbouring slices have the same position"):
        build_graph(torch.tensor([[[0.0, 1.0, 1.0]]]), spacing=True)


@given(cells)
def test_feature_weights_are_the_formula(places: set[tuple[int, int]]) -> None:
    places |= {(0, 0), (0, 1)}
    graph = build_graph(torch.tensor(sorted(places), dtype=torch.float).t()[None])
    x = torch.randn(1, 6, len(places))
    likeness = torch.exp(-torch.cdist(x[0].t(), x[0].t(), compute_mode="donot_use_mm_for_euclid_dist") / 6)
    torch.testing.assert_close(dense(weighted_by_features(graph, x)), dense(graph) * likeness)


def test_lattice_far_from_the_origin_and_off_by_a_fraction() -> None:
    """Level-0 coordinates over the pitch need not start at 0, nor be whole."""
    coords = torch.tensor([[[1000.2, 1001.2, 1002.2], [-500.4, -500.4, -500.4]]])
    assert dense(build_graph(coords)).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_halves_are_all_rounded_up() -> None:
    """To the nearest even number they would fall together."""
    coords = torch.tensor([[[0.5, 1.5, 2.5], [0.5, 0.5, 0.5]]])
    assert dense(build_graph(coords)).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dims", [1, 2])
def test_a_real_instance_without_a_place_is_an_error(dims: int, bad: float) -> None:
    coords = torch.zeros(1, dims, 3)
    coords[0, 0] = torch.tensor([0.0, bad, 2.0])
    with pytest.raises(ValueError, match="coords hold NaN or infinite values"):
        build_graph(coords)


def test_whole_numbers_are_coords_too() -> None:
    mask = torch.tensor([[[1, 1, 1, 0]]])
    for coords in (torch.tensor([[[3, 1, 2, 0]]]), torch.tensor([[[3, 1, 2, 0], [0, 0, 0, 0]]])):
        assert torch.equal(dense(build_graph(coords, mask)), dense(build_graph(coords.float(), mask)))


def test_chain_follows_the_position_not_the_place() -> None:
    matrix = dense(build_graph(torch.tensor([[[20.0, -5.0, 7.5, 100.0]]])))  # order along the normal: 1, 2, 0, 3
    assert matrix.nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [2, 0], [2, 1], [3, 0]]


def test_padding_has_no_neighbours() -> None:
    mask = torch.tensor([[[1.0, 1.0, 1.0, 0.0, 0.0]]])
    chain = dense(build_graph(torch.tensor([[[0.0, 1.0, 2.0, 0.0, 0.0]]]), mask))
    lattice = dense(build_graph(torch.tensor([[[0.0, 1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]]), mask))
    for matrix in (chain, lattice):
        assert matrix[3:].sum() == 0
        assert matrix[:, 3:].sum() == 0
        assert matrix.sum() == 4


def test_bags_of_a_batch_do_not_see_each_other() -> None:
    coords = torch.tensor([[[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]], [[5.0, 5.0, 5.0], [1.0, 2.0, 3.0]]])
    x = torch.zeros(2, 1, 3)
    x[0, 0] = torch.tensor([1.0, 10.0, 100.0])
    got = aggregate(x, build_graph(coords))
    assert got[0, 0].tolist() == [10, 101, 10]
    assert got[1, 0].tolist() == [0, 0, 0]


def test_a_wrong_unit_is_an_error_that_names_the_pitch() -> None:
    coords = 224 * torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")).flatten(1)[None]
    for far in (0, 200_000):
        with pytest.raises(ValueError, match=r"nearest distance is 224\.0; divide the coords by it"):
            build_graph(coords + far)


def test_who_is_sure_of_the_unit_may_have_patches_without_neighbours() -> None:
    far = torch.tensor([[[0.0, 5.0], [0.0, 9.0]]])
    assert build_graph(far, edgeless=True).weights.sum() == 0
    with pytest.raises(ValueError, match="not one pair"):
        build_graph(far)


def test_two_patches_in_one_place_are_an_error() -> None:
    with pytest.raises(ValueError, match="share one place of the patch lattice"):
        build_graph(torch.tensor([[[0.0, 0.3, 1.0], [0.0, 0.1, 0.0]]]))


@pytest.mark.parametrize(
    ("coords", "mask", "message"),
    [
        (torch.zeros(2, 5), None, "coords have 2 dimensions"),
        (torch.zeros(1, 2, 5), torch.ones(1, 5), "the mask does not fit the coords"),
        (torch.zeros(1, 2, 5), torch.ones(1, 1, 4), "the mask does not fit the coords"),
    ],
)
def test_another_shape_is_an_error(coords: torch.Tensor, mask: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_graph(coords, mask)


def test_three_coordinates_are_an_error() -> None:
    with pytest.raises(ValueError, match="coords hold 3 numbers per instance"):
        build_graph(torch.zeros(1, 3, 4))


def test_one_patch_alone_is_a_bag() -> None:
    assert dense(build_graph(torch.zeros(1, 2, 1))).tolist() == [[0]]


@given(cells)
def test_laplacian_is_degree_minus_adjacency(places: set[tuple[int, int]]) -> None:
    places |= {(0, 0), (0, 1)}
    graph = build_graph(torch.tensor(sorted(places), dtype=torch.float).t()[None])
    a = dense(graph)
    x = torch.randn(1, 3, len(places))
    expected = x[0] @ (torch.diag(a.sum(dim=0)) - a)
    torch.testing.assert_close(laplacian(x, graph)[0], expected)


@given(cells)
def test_normalised_is_symmetric_with_eigenvalues_within_one(places: set[tuple[int, int]]) -> None:
    places |= {(0, 0), (0, 1), (50, 50)}  # the last one is isolated
    graph = build_graph(torch.tensor(sorted(places), dtype=torch.float).t()[None])
    a, got = dense(graph), dense(normalised(graph))
    degree = a.sum(dim=0)
    isolated = degree == 0
    expected = a / torch.sqrt(torch.outer(degree, degree)).masked_fill(torch.outer(isolated, isolated), 1).clamp(min=1)
    expected += torch.diag(isolated.float())
    torch.testing.assert_close(got, expected)
    assert np.abs(np.linalg.eigvalsh(got.numpy())).max() <= 1 + 1e-5


def test_no_graph_has_no_rows() -> None:
    assert no_graph(torch.ones(2, 1, 7)).neighbours.shape == (2, 0, 7)
