# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Made-up bags whose best possible answer is known: one lesion of neighbours, on a chain or on a lattice, in noise.

An instance is N(0, I) in D numbers; in half of the bags the instances of one lesion, of a known size and anywhere in
the bag, are shifted by δ along one direction. δ² · size is the same for all sizes, so that bags are told apart about
equally well whatever the size, and what differs is how far an instance can lean on its neighbours.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from benchmarks.ledger.answers import Arrays, answers, deletions
from benchmarks.ledger.learning import Bags, System, fit, padded, parts_of

SLICES, SIDE, DIMENSIONS = 32, 10, 16
SIGNAL = 4.0  # δ · √size
BAGS = {"training": 400, "validation": 100, "test": 400}
ASKED_AGAIN = 60  # test bags whose parts the network is asked about


class Places(NamedTuple):
    """Where the instances of a bag stand, and where its lesion may lie."""

    coords: np.ndarray  # [1 or 2, N]
    covers: np.ndarray  # [places of the lesion, N] bool

    @property
    def size(self) -> int:
        return int(self.covers[0].sum())


def chain(length: int) -> Places:
    """A scan; the lesion is of `length` neighbouring slices."""
    first = np.arange(SLICES - length + 1)[:, None]
    at = np.arange(SLICES)
    return Places(at[None].astype(np.float32), (at >= first) & (at < first + length))


def lattice(side: int) -> Places:
    """A square slide; the lesion is a square of `side` patches."""
    corner = np.arange(SIDE - side + 1)
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    rows, columns = ((at >= corner[:, None]) & (at < corner[:, None] + side) for at in (row, column))
    covers = (rows[:, None] & columns).reshape(-1, SIDE**2)
    return Places(np.stack([row, column]).astype(np.float32), covers)


class MadeUp(NamedTuple):
    """Bags with all that is known of them."""

    instances: np.ndarray  # [bags, N, D]
    truth: np.ndarray  # [bags, N] of 0 and 1

    def bags(self, coords: np.ndarray) -> Bags:
        return padded(list(self.instances), self.truth.max(axis=1).tolist(), coords)


def cohort(places: Places, bags: int, seed: int) -> MadeUp:
    """Draw bags, every other with a lesion; the direction of the shift is the first axis, which no network knows."""
    rng = np.random.default_rng([places.size, seed])
    positive = np.arange(bags)[:, None] % 2 == 1
    truth = (places.covers[rng.integers(len(places.covers), size=bags)] & positive).astype(int)
    instances = rng.normal(size=(*truth.shape, DIMENSIONS)).astype(np.float32)
    instances[:, :, 0] += delta(places) * truth
    return MadeUp(instances, truth)


def delta(places: Places) -> float:
    """How far an instance of a lesion is shifted."""
    return float(SIGNAL / np.sqrt(places.size))


def bayes(made_up: MadeUp, places: Places) -> np.ndarray:
    """Return the logarithm of the probability that each instance, in a row, lies in a lesion, given its whole bag.

    P(lesion at k | x) ∝ Π over what it covers of p(x | lesion) / p(x | none), and half of the bags have none.
    """
    d = delta(places)
    ratio = d * made_up.instances[:, :, 0].astype(float) - d**2 / 2  # [bags, N] log-likelihood ratios
    at = ratio @ places.covers.T - np.log(len(places.covers))  # [bags, places]
    of_bag = np.logaddexp(0, logsumexp(at, axis=1))  # with a lesion or without
    posterior = [logsumexp(at[:, covering], axis=1) - of_bag for covering in places.covers.T]  # N of [bags]
    return np.stack(posterior, axis=1).ravel()


PLACES = {"chains": chain, "lattices": lattice}


def train(
    wing: str, files: Sequence[str], keys: dict[str, Any], config: str, kind: str, extent: int, seed: int
) -> Arrays:
    """One network on bags with a lesion of this extent: its answers to unseen bags, beside the best possible."""
    places = PLACES[kind](extent)
    parts = {name: cohort(places, count, 3 * seed + part) for part, (name, count) in enumerate(BAGS.items())}
    bags = {name: own.bags(places.coords) for name, own in parts.items()}
    made = parts_of(System(wing, tuple(files), keys), seed)
    network, course = fit(made, bags["training"], bags["validation"], seed)
    few = bags["test"].chosen(np.arange(ASKED_AGAIN))
    removed = deletions(network, few, answers(network, few))
    found = {"course": np.array(course), "bayes": bayes(parts["test"], places)}
    return {**found, **answers(network, bags["test"]), **removed}
