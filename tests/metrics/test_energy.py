# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The energy of attention and scores: 1 without order, less the smoother they are, the same at any size and scale."""

import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from scripts.core.record import BagResult, PatchCoordinates
from scripts.metrics.energy import attention_spreads, dirichlet_energies, dirichlet_energy, edges
from tests.bundle.commands import square_lattice
from tests.outputs.results import result

pytestmark = pytest.mark.filterwarnings("error")


def slides(coords: np.ndarray, slide: np.ndarray, *pitches: float) -> BagResult:
    about = {"slides": [{"pitch": pitch} for pitch in pitches]}
    patches = PatchCoordinates(coords, slide)
    values = np.random.default_rng(0).random(len(coords))
    return replace(result("a", 0.5, [0.0], 1), scores=values, attention=values, instances=patches, about=about)


def test_neighbours_are_slices_that_follow_and_patches_that_touch_on_their_own_slide() -> None:
    assert edges(result("a", 0.5, [1.0, 2, 3, 4], 1)).tolist() == [[0, 1, 2], [1, 2, 3]]
    generator = np.random.default_rng(0)
    lattice = square_lattice(9)
    first, second = (generator.permutation(lattice)[:n] for n in (50, 40))
    coords = np.concatenate([first * 256.0 + 17, second * 512.0])
    bag = slides(coords, np.repeat([0, 1], [50, 40]), 256, 512)
    found = {tuple(sorted(pair)) for pair in edges(bag).T.tolist()}
    assert len(found) == edges(bag).shape[1]
    wanted = cKDTree(first).query_pairs(1.5) | {(i + 50, j + 50) for i, j in cKDTree(second).query_pairs(1.5)}
    assert found == wanted


def test_energy_is_1_in_any_order_and_neither_size_nor_scale_change_that() -> None:
    generator = np.random.default_rng(0)
    for side in (3, 6):
        graph = edges(slides(square_lattice(side) * 256.0, np.zeros(side**2), 256))
        values = generator.exponential(size=side**2)
        shuffled = [dirichlet_energy(generator.permutation(values), graph) for _ in range(1500)]
        assert np.mean(shuffled) == pytest.approx(1, abs=0.03)
        assert dirichlet_energy(1000 * values - 7, graph) == pytest.approx(dirichlet_energy(values, graph))
    ramp = np.arange(20.0)
    chain = np.stack([np.arange(19), np.arange(1, 20)])
    assert dirichlet_energy(ramp, chain) == pytest.approx(1 / (2 * ramp.var(ddof=1)))
    assert dirichlet_energy(np.resize([0.0, 1.0], 20), chain) > 1.8


def test_a_lone_instance_and_equal_ones_have_none_and_patches_of_a_table_no_figure() -> None:
    every = np.ones(2)
    flat = replace(result("a", 0.5, [1.0, 1, 1], 1), attention=np.full(3, 1 / 3))
    for bags in ([result("b", 0.5, [3.0], 1)] * 2, [flat, slides(np.zeros((1, 2)), np.zeros(1), 256)]):
        assert [figure(every) for figure in dirichlet_energies(bags).values()] == [0, 0]
    rough = result("c", 0.5, [0.0, 5, 0, 5], 1)
    half = dirichlet_energies([flat, rough])["energy_of_scores"]
    assert half(every) == pytest.approx(dirichlet_energies([rough])["energy_of_scores"](np.ones(1)) / 2)
    assert dirichlet_energies([replace(rough, instances=[{"id": "0", "x": "0", "y": "0"}])]) == {}


def test_the_spread_of_attention_is_in_multiples_of_its_average_and_a_lone_instance_has_none() -> None:
    uneven = replace(result("a", 0.5, [0.0] * 4, 1), attention=np.array([0.4, 0.1, 0.4, 0.1]))
    in_slots = replace(uneven, attention=uneven.attention / 2, slots=8)  # empty slots hold the other half
    alone, even = result("b", 0.5, [3.0], 1), replace(uneven, attention=np.full(4, 0.25))
    for bags, wanted in (([uneven], 0.6), ([in_slots], 0.6), ([uneven, alone, even], 0.3), ([even, alone], 0)):
        assert attention_spreads(bags)["spread"](np.ones(len(bags))) == pytest.approx(wanted)
    assert np.isnan(attention_spreads([alone])["spread"](np.ones(1)))


def test_a_slide_of_a_hundred_thousand_patches_takes_no_second() -> None:
    bag = slides(square_lattice(316) * 256.0, np.zeros(316**2), 256)
    started = time.process_time()
    dirichlet_energies([bag])
    assert time.process_time() - started < 1.5
