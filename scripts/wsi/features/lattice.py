# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The lattice that the patches of a slide were cut on: its pitch, and the cell of each patch on it."""

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
    crowded: float  # share of the patches that fall on the cell of another
    regular: float  # 1 = every patch lies the same way off its cell, 0 = anyhow

    @property
    def good(self) -> bool:
        return self.degree >= 0.5 and self.crowded < 0.05 and self.regular > 0.9

    def is_better_than(self, other: "Fit") -> bool:
        """Clearly so: of two pitches that explain as much, the one that a file states is right."""
        return self.degree >= 2 and (
            other.degree < 0.5 or self.crowded < other.crowded - 0.05 or self.regular > other.regular + 0.2
        )


def fit(coords: np.ndarray, pitch: float) -> Fit:
    """Return how well a pitch explains coords (N, 2) in the same unit."""
    coords = distinct(coords)
    on_one_lattice = np.rint((coords - coords.min(axis=0)) / pitch)
    crowded = 1 - len(distinct(on_one_lattice)) / len(coords)
    regular = float(np.abs(np.exp(2j * np.pi / pitch * coords).mean(axis=0)).min())
    return Fit(mean_degree(on_lattice(coords, pitch)), crowded, regular)


def commonest_distance(coords: np.ndarray) -> float | None:
    """Return the distance of most patches from the nearest one along an axis; None where no two are apart."""
    coords = distinct(coords)
    if len(coords) < 2:
        return None
    tree = cKDTree(coords)
    nearest = np.sort(tree.query(coords, k=2, p=np.inf)[0][:, 1])
    alike = np.searchsorted(nearest, nearest * 1.02, side="right") - np.arange(len(nearest))
    commonest = int(alike.argmax())
    pitch = float(nearest[commonest : commonest + alike[commonest]].mean())
    # coords are rounded to whole pixels, and the nearest of two neighbours is the one that was rounded towards us
    _, neighbours = tree.query(coords, k=min(AROUND, len(coords)), p=np.inf, distance_upper_bound=1.1 * pitch)
    there, nth = np.nonzero(neighbours < len(coords))  # the tree answers N where there is none
    steps = np.abs(coords[neighbours[there, nth]] - coords[there]).ravel()
    for tolerance in (0.1, 0.1, 0.05):
        pitch = float(steps[np.abs(steps - pitch) <= tolerance * pitch].mean())
    return pitch


def mean_degree(cells: np.ndarray) -> float:
    """Return the mean number of neighbours among the 8 around a cell. cells: (N, 2) integers."""
    cells = distinct(cells).astype(np.int64)
    if len(cells) == 0:
        return 0.0
    cells -= cells.min(axis=0)
    width = int(cells[:, 1].max()) + 2
    key = cells[:, 0] * width + cells[:, 1] + 1
    pairs = 0
    for step in (1, width - 1, width, width + 1):
        at = np.searchsorted(key, key + step)  # as distinct cells are in order
        pairs += int(np.count_nonzero(key[np.minimum(at, len(key) - 1)] == key + step))
    return 2 * pairs / len(cells)


def on_lattice(coords: np.ndarray, pitch: float) -> PitchCoords:
    """Return the cell of each patch on the lattice, (N, 2) int64, the lowest being 0.

    Where tissue was cut piece by piece (CLAM starts anew at each contour), every piece has a lattice of its own. They
    keep their cells to the nearest pitch, or lie side by side where two of them would share one.
    """
    coords = np.asarray(coords, dtype=float)
    if len(coords) == 0:
        return PitchCoords(np.zeros((0, 2), dtype=np.int64))
    cells, off = _cells(coords, pitch, np.zeros(len(coords), dtype=np.int64))
    if off > NEAR or len(distinct(cells)) < len(coords):
        piece = _pieces(coords, pitch)
        cells, _ = _cells(coords, pitch, piece)
        apart = side_by_side(cells, piece)
        if len(distinct(cells)) < len(distinct(apart)):
            cells = apart
    return PitchCoords(cells - cells.min(axis=0))


def distinct(cells: np.ndarray) -> np.ndarray:
    """Return each row (x, y) once, in order, float64. Complex numbers sort many times as fast as rows do."""
    numbers = np.sort(np.ascontiguousarray(cells, dtype=np.float64).view(np.complex128).ravel())
    another = np.ones(len(numbers), dtype=bool)
    another[1:] = numbers[1:] != numbers[:-1]
    return numbers[another].view(np.float64).reshape(-1, 2)


def side_by_side(cells: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Move each piece to columns of its own, apart from the others'. piece: (N,) numbers from 0."""
    _, first, piece = np.unique(piece, return_index=True, return_inverse=True)  # a number may be missing
    low, high = cells[first], cells[first]
    np.minimum.at(low, piece, cells)
    np.maximum.at(high, piece, cells)
    columns = high[:, 0] - low[:, 0] + 1 + FREE_COLUMNS
    low[:, 0] -= np.cumsum(columns) - columns
    moved: np.ndarray = cells - low[piece]
    return moved


def _cells(coords: np.ndarray, pitch: float, piece: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the cells on the lattice of each one's own piece, and how far off it the worst lies, in pitches."""
    turns = np.exp(2j * np.pi / pitch * coords)  # how far they lie off the multiples, on the unit circle
    sums = [np.bincount(piece, turn.real) + 1j * np.bincount(piece, turn.imag) for turn in turns.T]
    offset = np.angle(np.stack(sums, axis=1)) / (2 * np.pi)
    exact = coords / pitch - offset[piece]
    cells = np.rint(exact)
    return cells.astype(np.int64), float(np.abs(exact - cells).max())


def _pieces(coords: np.ndarray, pitch: float) -> np.ndarray:
    """Return numbers (N,) from 0: what hangs together by steps of one pitch was cut on one lattice."""
    n, reach = len(coords), (1 + OFF_A_STEP) * pitch
    _, near = cKDTree(coords).query(coords, k=range(1, min(AROUND, n) + 1), p=np.inf, distance_upper_bound=reach)
    here, nth = np.nonzero(near < n)
    there = near[here, nth]
    steps = (coords[there] - coords[here]) / pitch
    whole = (np.abs(steps - np.rint(steps)) <= OFF_A_STEP).all(axis=1)
    graph = coo_matrix((np.ones(whole.sum()), (here[whole], there[whole])), shape=(n, n))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers.astype(np.int64)
