# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The lattice is found whatever pitch, corner and rounding it was cut with."""

import numpy as np
import pytest

from scripts.wsi.features.lattice import commonest_distance, distinct, fit, mean_degree, on_lattice
from tests.wsi.foreign_features import edges_of, tissue


@pytest.mark.parametrize("seed", range(4))
def test_places_are_the_cells_they_were_made_of(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = tissue(60, 30, seed=seed)
    pitch = float(rng.uniform(30, 3000))
    corner = rng.uniform(-1e5, 1e5, 2)
    off = rng.uniform(-0.04, 0.04, cells.shape) * pitch
    coords, expected = corner + cells * pitch + off, cells - cells.min(axis=0)
    assert (on_lattice(coords, pitch) == expected).all()
    assert commonest_distance(coords) == pytest.approx(pitch, rel=2e-3)
    assert (on_lattice(coords, pitch * 1.004) == expected).all()  # a fifth of a pitch over the whole slide
    assert fit(coords, pitch).good


def test_a_place_does_not_depend_on_which_patches_are_in_the_corner() -> None:
    """Were places counted from the lowest patch, one that lies half a pitch off would split all the others' rows."""
    cells = tissue()
    coords = np.concatenate([[[-127, -127]], 256 * (cells + 1), 256 * (cells + 1)[:1] + [[40 * 256 + 128, 1]]])
    places = on_lattice(coords, 256)
    assert edges_of(places[1:-1]) == edges_of(cells)


def test_the_distance_is_that_of_neighbours_that_touch_if_only_by_a_corner() -> None:
    assert commonest_distance(np.array([[0, 0], [256, 256], [512, 0], [256, 768]])) == 256
    assert commonest_distance(np.array([[3, 4], [3, 4]])) is commonest_distance(np.zeros((0, 2))) is None


def test_degree_is_that_of_the_pairs() -> None:
    cells = tissue()
    assert mean_degree(cells - 7) == pytest.approx(2 * len(edges_of(cells)) / len(cells))
    assert mean_degree(np.concatenate([cells, cells])) == mean_degree(cells)
    assert mean_degree(np.zeros((0, 2), int)) == 0
    assert mean_degree(np.array([[0, 5], [1, 0]])) == 0  # the end of one column is not beside the start of the next


def test_fit_tells_a_wrong_pitch() -> None:
    coords = tissue() * 256
    right, half, double, other = (fit(coords, pitch) for pitch in (256, 128, 512, 300))
    assert right.good
    assert (half.degree, half.crowded) == (0, 0)
    assert double.crowded > 0.5
    assert other.regular < 0.3
    for wrong in (half, double, other):
        assert not wrong.good
        assert right.is_better_than(wrong)
        assert not wrong.is_better_than(right)


def test_each_place_once() -> None:
    rng = np.random.default_rng(0)
    places = rng.integers(-3, 3, (200, 2)) / 2.0
    places[places == 0] *= rng.choice([-1, 1], (places == 0).sum())  # -0.0 is no other place
    assert (distinct(places) == np.unique(places, axis=0)).all()
    assert distinct(np.zeros((0, 2))).shape == (0, 2)
