# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""How far attention differs from even, and how smooth it and the scores are: Dirichlet energy, scaled as Geary's C."""

from collections.abc import Sequence

import numpy as np
import torch

from scripts.core.record import BagResult, PatchCoordinates
from scripts.metrics.figures import Figure, mean_over_bags
from scripts.networks.graph import build_graph


def attention_spreads(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Return the mean spread of attention × N, over the bags with more than one instance."""
    several = np.array([len(result.attention) > 1 for result in results])
    return {"spread": mean_over_bags(np.array([result.attention_spread for result in results]), several)}


def dirichlet_energies(results: Sequence[BagResult]) -> dict[str, Figure]:
    """Return the mean energy of attention and of scores; of patches read back from a table, whose pitch is lost, none.

    A bag counts as one, whatever its size.
    """
    from_tables = [result.instances for result in results if not isinstance(result.instances, PatchCoordinates)]
    if any("x" in row for rows in from_tables for row in rows[:1]):
        return {}
    energies = []
    for result in results:
        graph = edges(result)
        energies.append([dirichlet_energy(values, graph) for values in (result.attention, result.scores)])
    names, every = ("energy_of_attention", "energy_of_scores"), np.ones(len(results))
    return {name: mean_over_bags(energy, every) for name, energy in zip(names, np.array(energies).T, strict=True)}


def dirichlet_energy(values: np.ndarray, graph: np.ndarray) -> float:
    """Return the mean squared difference of neighbours over that of any two instances; values: (N,), graph: (2, E).

    In random order it is 1 on average, whatever N and the scale. 0 where no neighbours differ, as in a lone instance.
    """
    values = values.astype(float)
    apart = np.diff(values[graph], axis=0)
    if graph.shape[1] == 0 or np.ptp(values) <= 1e-6 * np.abs(values).max():  # all alike, but for rounding
        return 0.0
    return float((apart**2).mean() / (2 * values.var(ddof=1)))


def edges(result: BagResult) -> np.ndarray:
    """Return the pairs of neighbours, (2, E): slices that follow each other, patches that touch on their slide."""
    patches = result.instances
    if not isinstance(patches, PatchCoordinates):
        place = np.arange(len(result.scores))
        return np.stack([place[:-1], place[1:]])
    found = [np.zeros((2, 0), dtype=int)]
    for number, slide in enumerate(result.about["slides"]):
        of_slide = np.flatnonzero(patches.slide == number)
        if len(of_slide) == 0:
            continue
        coords = torch.from_numpy(patches.coords[of_slide].T / slide["pitch"])[None]
        graph = build_graph(coords, edgeless=True)
        which, patch = np.nonzero(graph.weights[0].numpy())  # [8, N]
        neighbour = graph.neighbours[0].numpy()[which, patch]
        once = patch < neighbour
        found.append(np.stack([of_slide[patch[once]], of_slide[neighbour[once]]]))
    return np.concatenate(found, axis=1)
