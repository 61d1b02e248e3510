# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Made-up scans whose best possible answer is known: one lesion of neighbouring slices in Gaussian noise.

A slice is N(0, I) in D numbers; in half of the scans the slices of one lesion, of a known length and anywhere in the
chain, are shifted by δ along one direction. δ² · length is the same for all lengths, so that scans are told apart
equally well whatever the length, and what differs is how far a slice can lean on its neighbours.
"""

from typing import Any

import numpy as np
from scipy.special import logsumexp

from benchmarks.ledger.cells import Arrays
from benchmarks.ledger.data import Scans
from benchmarks.ledger.learning import System, fit, padded, parts_of
from benchmarks.ledger.rsna import answers

SLICES, DIMENSIONS = 32, 16
SIGNAL = 4.0  # δ · √length
SCANS = {"training": 400, "validation": 100, "test": 400}


def cohort(length: int, scans: int, seed: int) -> Scans:
    """Draw scans, every other with a lesion; the direction of the shift is the first axis, which no network knows."""
    rng = np.random.default_rng([length, seed])
    labels = np.arange(scans) % 2
    truth = np.zeros((scans, SLICES), dtype=int)
    for scan in np.flatnonzero(labels):
        first = rng.integers(SLICES - length + 1)
        truth[scan, first : first + length] = 1
    features = rng.normal(size=(scans, SLICES, DIMENSIONS)).astype(np.float32)
    features[:, :, 0] += delta(length) * truth
    return Scans([str(scan) for scan in range(scans)], list(features), labels, list(truth))


def delta(length: int) -> float:
    """How far a slice of a lesion is shifted."""
    return float(SIGNAL / np.sqrt(length))


def bayes(scans: Scans, length: int) -> np.ndarray:
    """Return the logarithm of the probability that each slice, in a row, lies in a lesion, given its whole scan.

    P(lesion begins at k | x) ∝ Π over its slices of p(x | lesion) / p(x | none), and half of the scans have none.
    """
    d, starts = delta(length), SLICES - length + 1
    ratio = d * np.stack(scans.slices)[:, :, 0].astype(float) - d**2 / 2  # [scans, slices] log-likelihood ratios
    total = np.concatenate([np.zeros((len(ratio), 1)), ratio.cumsum(axis=1)], axis=1)
    window = total[:, length:] - total[:, :starts] - np.log(starts)  # [scans, starts]
    evidence = np.logaddexp(0, logsumexp(window, axis=1))  # of the scan: with a lesion or without
    covers = np.abs(np.arange(SLICES)[:, None] - np.arange(starts) - (length - 1) / 2) <= (length - 1) / 2
    by_slice = np.where(covers, window[:, None], -np.inf)  # [scans, slices, starts]
    return (logsumexp(by_slice, axis=2) - evidence[:, None]).ravel()


def train(files: list[str], keys: dict[str, Any], config: str, length: int, seed: int) -> Arrays:
    """One head on scans with a lesion of this length: its answers to unseen scans, beside the best possible."""
    parts = {name: cohort(length, count, 3 * seed + part) for part, (name, count) in enumerate(SCANS.items())}
    bags = {name: padded(scans.slices, scans.labels.tolist()) for name, scans in parts.items()}
    made = parts_of(System("ct", tuple(files), keys), seed)
    network, course = fit(made, bags["training"], bags["validation"], seed)
    found = answers(network, bags["test"])
    return {**found, "course": np.array(course), "bayes": bayes(parts["test"], length)}
