# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The lattice that the patches of a slide were cut on: its pitch, and the place of each patch on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from scripts.core.units import PitchCoords

NEAR = 0.25  # of a pitch: no patch of a slide may lie farther off its one lattice
OFF_A_STEP = 0.1  # of a pitch: what is farther from a whole step away lies on another lattice
FREE_COLUMNS = 4  # between two lattices that must not touch
AROUND = 13  # nearest patches that are asked for: the 8 around, and some of another lattice that lies over this one


class Fit(NamedTuple):
    """How well a pitch explains where the patches lie."""

    degree: float  # mean number of neighbours, of the 8 there may be
    crowded: float  # share of the patches that fall on the place of another
    regular: float  # 1 = every patch lies the same way off its place, 0 = anyhow

    @property
    def good(self) -> bool:
        return self.degree >= 0.5 and self.crowded < 0.05 and self.regular > 0.9

    def is_better_than(self, other: Fit) -> bool:
        """Clearly so: of two pitches that explain as much, the one that a file states is right."""
        return self.degree >= 2 and (
            other.degree < 0.5 or self.crowded < other.crowded - 0.05 or self.regular > other.regular + 0.2
        )


def fit(coords: np.ndarray, pitch: float) -> Fit:
    """(N, 2) coords and a pitch of one unit."""
    coords = distinct(coords)
    if len(coords) == 0:
        return Fit(0, 0, 1)
    on_one_lattice = np.rint((coords - coords.min(axis=0)) / pitch)
    crowded = 1 - len(distinct(on_one_lattice)) / len(coords)
    regular = float(np.abs(_turns(coords, pitch).mean(axis=0)).min())
    return Fit(mean_degree(lattice_places(coords, pitch)), crowded, regular)


def commonest_distance(coords: np.ndarray) -> float | None:
    """From a patch to the nearest one along an axis, as most of them have it; None where there are no two places."""
    coords = distinct(coords)
    if len(coords) < 2:
        return None
    tree = cKDTree(coords)
    nearest = np.sort(tree.query(coords, k=2, p=np.inf)[0][:, 1])
    alike = np.searchsorted(nearest, nearest * 1.02, side="right") - np.arange(len(nearest))
    commonest = int(alike.argmax())
    pitch = float(nearest[commonest : commonest + alike[commonest]].mean())
    # places are rounded to whole pixels, and the nearest of two neighbours is the one that was rounded towards us
    _, neighbours = tree.query(coords, k=min(AROUND, len(coords)), p=np.inf, distance_upper_bound=1.1 * pitch)
    steps = np.abs(np.concatenate([*_differences(coords, neighbours)]))
    for tolerance in (0.1, 0.1, 0.05):
        pitch = float(steps[np.abs(steps - pitch) <= tolerance * pitch].mean())
    return pitch


def mean_degree(places: np.ndarray) -> float:
    """Neighbours among the 8 around a place, on average. places: (N, 2) integers."""
    places = distinct(places).astype(np.int64)
    if len(places) == 0:
        return 0.0
    places -= places.min(axis=0)
    width = int(places[:, 1].max()) + 2
    key = places[:, 0] * width + places[:, 1] + 1
    pairs = sum(np.isin(key + step, key, assume_unique=True).sum() for step in (1, width - 1, width, width + 1))
    return 2 * float(pairs) / len(places)


def lattice_places(coords: np.ndarray, pitch: float) -> PitchCoords:
    """(N, 2) int64: the place of each patch on the lattice, the lowest being 0.

    Where tissue was cut piece by piece (CLAM starts anew at each contour), every piece has a lattice of its own. They
    keep their places to the nearest pitch, or lie side by side where two of them would share one.
    """
    coords = np.asarray(coords, dtype=float)
    if len(coords) == 0:
        return PitchCoords(np.zeros((0, 2), dtype=np.int64))
    places, off = _places(coords, pitch, np.zeros(len(coords), dtype=np.int64))
    if off > NEAR or len(distinct(places)) < len(coords):
        piece = _pieces(coords, pitch)
        places, _ = _places(coords, pitch, piece)
        apart = side_by_side(places, piece)
        if len(distinct(places)) < len(distinct(apart)):
            places = apart
    return PitchCoords(places - places.min(axis=0))


def distinct(places: np.ndarray) -> np.ndarray:
    """(n, 2) float64: each place once, in order. Complex numbers sort many times as fast as rows do."""
    numbers = np.sort(np.ascontiguousarray(places, dtype=np.float64).view(np.complex128).ravel())
    another = np.ones(len(numbers), dtype=bool)
    another[1:] = numbers[1:] != numbers[:-1]
    return numbers[another].view(np.float64).reshape(-1, 2)


def side_by_side(places: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Each piece in columns of its own, apart from the others'. piece: (N,) numbers from 0."""
    pieces = int(piece.max()) + 1
    low, high = np.full((pieces, 2), np.iinfo(np.int64).max), np.full((pieces, 2), np.iinfo(np.int64).min)
    np.minimum.at(low, piece, places)
    np.maximum.at(high, piece, places)
    occupied = low[:, 0] <= high[:, 0]  # a number may be missing
    low[~occupied], high[~occupied] = 0, -FREE_COLUMNS - 1
    columns = high[:, 0] - low[:, 0] + 1 + FREE_COLUMNS
    start = np.cumsum(columns) - columns
    moved: np.ndarray = places - low[piece]
    moved[:, 0] += start[piece]
    return moved


def _turns(coords: np.ndarray, pitch: float) -> np.ndarray:
    """How far off the multiples of the pitch, as a point on the unit circle."""
    turns: np.ndarray = np.exp(2j * np.pi * (coords / pitch))
    return turns


def _places(coords: np.ndarray, pitch: float, piece: np.ndarray) -> tuple[np.ndarray, float]:
    """On the lattice of its own piece each, and how far off it the worst lies, in pitches."""
    turns = _turns(coords, pitch)
    offset = np.stack([np.angle(_sums(turns[:, axis], piece)) for axis in (0, 1)], axis=1) / (2 * np.pi)
    exact = coords / pitch - offset[piece]
    places = np.rint(exact)
    return places.astype(np.int64), float(np.abs(exact - places).max())


def _sums(values: np.ndarray, piece: np.ndarray) -> np.ndarray:
    sums: np.ndarray = np.bincount(piece, values.real) + 1j * np.bincount(piece, values.imag)
    return sums


def _pieces(coords: np.ndarray, pitch: float) -> np.ndarray:
    """(N,) numbers from 0: what hangs together by steps of one pitch was cut on one lattice."""
    n = len(coords)
    reach = (1 + OFF_A_STEP) * pitch
    _, near = cKDTree(coords).query(coords, k=min(AROUND, n), p=np.inf, distance_upper_bound=reach)
    near = near.reshape(n, -1)
    here, there = np.nonzero(near < n)
    there = near[here, there]
    steps = (coords[there] - coords[here]) / pitch
    whole = (np.abs(steps - np.rint(steps)) <= OFF_A_STEP).all(axis=1)
    graph = coo_matrix((np.ones(whole.sum()), (here[whole], there[whole])), shape=(n, n))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers.astype(np.int64)


def _differences(coords: np.ndarray, neighbours: np.ndarray) -> Iterator[np.ndarray]:
    for near in neighbours.T:
        there = near < len(coords)  # the tree answers N where there is none
        yield (coords[near[there]] - coords[there]).ravel()
